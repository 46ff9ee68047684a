// Neighbouring elements of a row, moved as one word.
#pragma once
#include "common.cuh"

// Element i of a vector of a type, as it lies in words; i is known to the compiler.
__device__ __forceinline__ float element(float, const uint32_t* words, int i) {
  return __uint_as_float(words[i]);
}
__device__ __forceinline__ float element(bf16, const uint32_t* words, int i) {
  return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}
__device__ __forceinline__ float element(f16, const uint32_t* words, int i) {
  return f16_value(uint16_t(words[i / 2] >> (i % 2 * 16)));
}
// Elements i and i + 1, i even.
__device__ __forceinline__ void set_pair(float, uint32_t* words, int i, float first, float second) {
  words[i] = __float_as_uint(first);
  words[i + 1] = __float_as_uint(second);
}
__device__ __forceinline__ void set_pair(bf16, uint32_t* words, int i, float first, float second) {
  words[i / 2] = bf16_pair(first, second);
}
__device__ __forceinline__ void set_pair(f16, uint32_t* words, int i, float first, float second) {
  words[i / 2] = f16_pair(first, second);
}

// V elements of type T as they lie in memory, aligned to their size; V is 1, 2 or 4.
template <class T, int V> struct alignas(sizeof(T) * V) Vector {
  uint32_t words[sizeof(T) * V / 4];
  __device__ __forceinline__ void unpack(float (&to)[V]) const {
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = element(T{}, words, i);
  }
  __device__ __forceinline__ void pack(const float (&from)[V]) {
#pragma unroll
    for (int i = 0; i < V; i += 2) set_pair(T{}, words, i, from[i], from[i + 1]);
  }
};
template <class T> struct Vector<T, 1> {
  T single;
  __device__ __forceinline__ void unpack(float (&to)[1]) const { to[0] = value(single); }
  __device__ __forceinline__ void pack(const float (&from)[1]) { store(&single, from[0]); }
};

// The V elements at `from`, or zeros where they are outside of the tensor.
template <int V, class T>
__device__ __forceinline__ Vector<T, V> fetch(const T* from, bool is_inside) {
  return is_inside ? *reinterpret_cast<const Vector<T, V>*>(from) : Vector<T, V>{};
}

template <int V, class T> __device__ __forceinline__ void put(T* to, const float (&from)[V]) {
  Vector<T, V> vector;
  vector.pack(from);
  *reinterpret_cast<Vector<T, V>*>(to) = vector;
}

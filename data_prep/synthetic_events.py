"""Renders labelled videos whose class is the order of two short events in a long clip.

A letter stands almost still. Twice it shows something for a few frames and then looks as before: it
takes one of four colours, or it vanishes. Which two events there are, and in which order, is the
class. When they happen, where the letter stands and how it looks vary from clip to clip, and other
letters of any colour drift past. No single frame tells the class, and no set of frames in unknown
order tells it from its reverse.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from data_prep.synthetic import Motion, SynthOptions, coverage, f32, random_glyph

COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 230, 30),
    "blue": (30, 30, 230),
    "yellow": (230, 230, 30),
}
EVENTS = (*COLOURS, "vanish")
CLASSES = tuple(f"{a}_then_{b}" for a, b in itertools.permutations(EVENTS, 2))
_LEAST_GAP = 1  # frames between the two events, and before the first


class EventOptions(SynthOptions):
    """Options of `vmp data synth --kind events`."""

    frames: int = Field(default=16, ge=2)
    event_frames: int = Field(default=3, ge=1)
    """Length of each event."""
    distractors: int = Field(default=2, ge=0)
    """Other letters, dimmer and smaller, that drift past."""
    height: tuple[float, float] = (16.0, 20.0)
    """Range of the letter's height in pixels at `size` 32."""

    @model_validator(mode="after")
    def _two_events_fit(self) -> EventOptions:
        least = 2 * (self.event_frames + _LEAST_GAP)
        if self.frames < least:
            raise ValueError(
                f"two events of event_frames={self.event_frames} need {least} frames or more"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    def render(self, label: str, random: np.random.Generator) -> npt.NDArray[np.uint8]:
        return render_events(label, self, random)


def draw_starts(options: EventOptions, random: np.random.Generator) -> tuple[int, int]:
    """Draw the first frames of the two events, uniformly from all pairs of places that fit."""
    apart = options.event_frames + _LEAST_GAP
    last = options.frames - options.event_frames
    places = [(a, b) for a in range(_LEAST_GAP, last) for b in range(a + apart, last + 1)]
    return places[random.integers(len(places))]


def render_events(
    label: str, options: EventOptions, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Render one clip: (frames, size, size, 3) uint8 RGB."""
    frames, size, unit = options.frames, options.size, options.size / 32
    time = np.arange(frames) - (frames - 1) / 2
    canvas = np.tile(random.uniform(0, 40, 3), (frames, size, size, 1))
    for _ in range(options.distractors):
        place, speed = random.uniform(-12, 12, 2), random.uniform(-0.8, 0.8, 2)
        turned, turn = random.uniform(0, 2 * np.pi), random.uniform(-0.2, 0.2)
        drift = Motion(
            x=f32((place[0] + speed[0] * time) * unit),
            y=f32((place[1] + speed[1] * time) * unit),
            height=f32(np.full(frames, random.uniform(8, 12) * unit)),
            angle=f32(turned + turn * time),
        )
        inked = coverage(random_glyph(random), drift, size)[..., None]
        canvas += inked * (random.uniform(40, 140, 3) - canvas)
    place, jitter = random.uniform(-5, 5, 2), random.normal(0, 0.3, (2, frames))
    still = Motion(
        x=f32((place[0] + jitter[0]) * unit),
        y=f32((place[1] + jitter[1]) * unit),
        height=f32(np.full(frames, random.uniform(*options.height) * unit)),
        angle=f32(np.full(frames, random.uniform(0, 2 * np.pi))),
    )
    colour = np.full((frames, 3), random.uniform(130, 220))
    visible = np.ones(frames)
    for event, start in zip(label.split("_then_"), draw_starts(options, random), strict=True):
        during = slice(start, start + options.event_frames)
        if event == "vanish":
            visible[during] = 0
        else:
            colour[during] = COLOURS[event]
    ink = (coverage(random_glyph(random), still, size) * visible[:, None, None])[..., None]
    canvas += ink * (colour[:, None, None, :] - canvas)
    noisy = canvas + random.normal(0.0, options.noise, canvas.shape)
    image: npt.NDArray[np.uint8] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return image

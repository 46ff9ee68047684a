"""Evaluation and export of trained models. Prediction is in `pipeline.predict`."""

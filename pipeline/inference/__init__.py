"""Trained models at work: evaluation and export. Prediction is `pipeline.predict`."""

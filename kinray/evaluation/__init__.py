"""Scoring with lm-eval: tasks loaded once, a resident model, scores with standard errors."""

import os

# Progress bars of libraries would write into kinray's output; these are read when the libraries are imported.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

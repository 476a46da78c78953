"""Tests of kinray. Shared pieces are in ``tests.helpers``."""

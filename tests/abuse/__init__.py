"""Hostile and broken input: each case ends with exit code 2 and one clear line, and nothing is written.

What single functions refuse is tested beside them (``tests/checkpoints/test_header.py`` and so on); here it is the commands.
"""

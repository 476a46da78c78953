"""Makes the built-in demo: a tiny base model, three fine-tunes of it, and the tasks they differ in."""

from kinray.demo.founders import DemoFiles, build_demo
from kinray.demo.settings import DemoSettings, Lesson

__all__ = ["DemoFiles", "DemoSettings", "Lesson", "build_demo"]

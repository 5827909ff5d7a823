"""The quick start: real text on any machine becomes a small trained model."""

from stablelm.demo.demo import run_demo

__all__ = ["run_demo"]

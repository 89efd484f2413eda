"""The Hugging Face code of NVILA-Lite.

An exported directory carries these files as its own code, so they import nothing but the standard
library, numpy, PIL, torch, transformers and each other. Training uses the tiling and the prompt
expansion from here too: there is one of each.
"""

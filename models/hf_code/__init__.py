"""The Hugging Face code of NVILA-Lite, and of LLaVAs with one of NeVA's other projectors.

An exported directory carries these files as its own code, so they import nothing but the standard
library, numpy, PIL, torch, transformers and each other. Training uses the tiling, the prompt
expansion and the projectors from here too: there is one of each.
"""

"""IndexTTS-2 in plain PyTorch: zero-shot voices, four ways to set emotion, streaming, batching.

Importing this package imports no torch; its modules do. The backend is
`engine.backends.indextts2.backend.IndexTTS2`, which needs the optional group `[indextts2]` and a
model directory (see docs/indextts2.md).
"""

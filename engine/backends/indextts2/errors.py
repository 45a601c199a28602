"""What can go wrong before IndexTTS-2 speaks.

EngineError
└── ModelUnusable         the model directory cannot be used; the message says what to mend
    ├── FilesMissing      files of the release are not there
    ├── WeightsWrong      a file is there, but keys are missing or have other shapes
    └── UnsupportedModel  another version, or sizes this engine does not know
"""

from __future__ import annotations

from engine.errors import EngineError


class ModelUnusable(EngineError):
    """The model directory cannot be used as it stands."""


class FilesMissing(ModelUnusable):
    """Files of the release are not there; the message names them and who publishes them."""


class WeightsWrong(ModelUnusable):
    """Tensors that inference needs are missing or ill-shaped; the message names the keys."""


class UnsupportedModel(ModelUnusable):
    """`config.yaml` describes a model this engine does not run."""

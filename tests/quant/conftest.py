"""Before anything imports onnxruntime: its wheels send telemetry unless told not to."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

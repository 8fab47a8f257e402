"""Cluster-routed KV reuse for LangChain and LlamaIndex on local transformers models."""

from centroidkv.acceleration import accelerate
from centroidkv.config import EngineConfig, Sampling
from centroidkv.engine import Engine
from centroidkv.errors import CentroidKVError
from centroidkv.model_trial import ModelTrial
from centroidkv.plan_config import PlanConfig
from centroidkv.serving.closing import close_on_signals
from centroidkv.types import Chunk, Completion, Message, Passage, Usage

__version__ = "0.1.0"

__all__ = [
    "CentroidKVError",
    "Chunk",
    "Completion",
    "Engine",
    "EngineConfig",
    "Message",
    "ModelTrial",
    "Passage",
    "PlanConfig",
    "Sampling",
    "Usage",
    "accelerate",
    "close_on_signals",
]

"""Engines: other ways to run the network of a click. Each gives a model that shares its weights with the one given.

`torch-bfloat16` works for every model; its masks differ a little. `onnx-float32` needs the extra `clickloop[onnx]`, a
CPU and a model whose refiner is `fdrn.Refiner`. Encodings are always float32, so that embeddings do not depend on the
engine. Knows no clicks, images or settings.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models._base import Encoding, InteractiveModel, ModelAround, Prediction
from pipeline.models.fdrn import Refiner
from schemas.clicks import Click
from schemas.engines import DEFAULT_ENGINE, ENGINES, EngineName, Tuning, check_available, cpu_name, runtime_versions
from schemas.errors import BadInputError
from schemas.predictions import Engine

_INPUTS = ("crops", "hints", "current", "history", "previous", "log_scale", "f_low", "f_high")


def with_engine(model: InteractiveModel, engine: EngineName) -> InteractiveModel:
    """The model with its refine step run by an engine; all else, and every weight, is shared.

    Args:
        model: In eval mode; left as it is.
        engine: Which; the default gives the model itself.

    Raises:
        BadInputError: This machine or this model cannot have it.
    """
    if engine == DEFAULT_ENGINE:
        return model
    if engine == "torch-bfloat16":
        return _InBfloat16(model).eval()
    check_available(engine, _device(model).type)
    if not any(isinstance(module, Refiner) for module in model.modules()):
        raise BadInputError(f"Model {model.model_id} cannot run on {engine}. Use {DEFAULT_ENGINE} or torch-bfloat16.")
    twin: InteractiveModel = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for own, module in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(own, Refiner) and isinstance(module, Refiner):
            module.network = _OnnxNetwork(own)  # type: ignore[method-assign, assignment]  # this one's, not the class's
    return twin


def training_engine(device: torch.device) -> EngineName:
    """The engine to train on: bfloat16 where the hardware multiplies in it, which takes two thirds of the time.

    Where such products are emulated, float32 is faster.

    Args:
        device: CUDA or CPU (AMX, AVX-512 BF16, or ARM's BF16); anything else trains in float32.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        fast = any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "torch-bfloat16" if fast else "torch-float32"


def machine_name(device: str) -> str:
    """The processor or GPU that models run on."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def tuned_engine(tuning: Tuning | None, model_digest: str, device: str) -> EngineName:
    """The engine that was found best, as long as it was found here, with these packages and weights; else the default.

    Args:
        tuning: What `clickloop doctor --tune` left.
        model_digest: Of the model to run.
        device: "cpu" or "cuda".
    """
    here = (machine_name(device), runtime_versions(), model_digest)
    if tuning is None or (tuning.machine, tuning.packages, tuning.model_digest) != here:
        return DEFAULT_ENGINE
    return tuning.engine


def engine_record(engine: EngineName, device: str) -> Engine:
    """What is stored with a mask."""
    runtime, _, dtype = engine.partition("-")
    if runtime == "torch":
        return Engine(runtime=f"torch-{device}", version=torch.__version__, dtype=dtype)
    return Engine(runtime=f"onnx-{device}", version=runtime_versions()["onnxruntime"], dtype=dtype)


def engine_name(engine: Engine | None) -> EngineName:
    """The engine of a record, whatever its version and device; the default for None and for one not known here."""
    name = f"{engine.runtime.partition('-')[0]}-{engine.dtype}" if engine else DEFAULT_ENGINE
    return next((known for known in ENGINES if known == name), DEFAULT_ENGINE)


class _InBfloat16(ModelAround):
    """A model whose refine step is autocast to bfloat16; it encodes in float32."""

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """See `InteractiveModel.refine`."""
        with torch.autocast(previous.device.type, torch.bfloat16):
            made = self.base.refine(encoding, clicks, previous, crops, rois)
        return Prediction(made.logits.float(), made.scores.float(), made.query_ids, made.is_ranked)


class _OnnxNetwork:
    """`Refiner.network` on ONNX Runtime, exported (in seconds) when a size of crops is first seen.

    Args:
        refiner: Exported with the weights that it has then.
    """

    def __init__(self, refiner: Refiner) -> None:
        self._refiner = refiner
        self._sessions: dict[torch.Size, Any] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        plain = tuple(tensor.float().contiguous() for tensor in inputs)
        session = self._sessions.get(plain[0].shape)
        if session is None:
            session = self._sessions[plain[0].shape] = self._session(plain)
        outputs = session.run(None, {n: t.numpy() for n, t in zip(_INPUTS, plain, strict=True)})
        return tuple(torch.from_numpy(array) for array in outputs)

    def _session(self, inputs: tuple[Tensor, ...]) -> Any:
        import onnxruntime

        program = torch.onnx.export(_Network(self._refiner), inputs, input_names=_INPUTS, dynamo=True, verbose=False)
        assert program is not None, "with dynamo"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        return onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


class _Network(nn.Module):
    """`Refiner.network` as the module that the export wants."""

    def __init__(self, refiner: Refiner) -> None:
        super().__init__()
        self.refiner = refiner
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.refiner.network(*inputs)


def _device(model: InteractiveModel) -> torch.device:
    return next(model.parameters()).device

"""The kinds of adapters: which tensors each has, how they are trained, and how they are laid over a model.

- "head", "affine", "full" replace parameters of the model by their names (the model says which, see
  `InteractiveModel.adapter_parameter_names`; all of them act after the cut).
- "lora" adds low-rank products to weights after the cut. Only the factors are kept; laid over a model they are summed
  into its weights, so serving costs nothing.
- "clickadapter" adds a detail branch to the logits.

An untrained adapter of any kind leaves the model's output as it is. Batch statistics stay frozen. Knows no files.

Source of "lora": Hu et al., "LoRA", ICLR 2022, section 4.1; PyTorch's parametrizations carry it.
"""

import copy
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.adapters.detail import DetailAdapted, DetailBranch
from pipeline.models._base import InteractiveModel
from schemas.errors import BadInputError
from schemas.requests import ADAPTER_KINDS

LORA_RANK = 4
_DOWN, _UP = ".lora_down", ".lora_up"
_DETAIL = "detail."


def adapter_tensors(model: InteractiveModel, kind: str, seed: int = 0) -> dict[str, Tensor]:
    """An untrained adapter's tensors, float32 on the CPU: laid over the model they change nothing.

    Args:
        model: Without an adapter.
        kind: Of `ADAPTER_KINDS`.
        seed: Of what starts at random (the inner sides of "lora" and "clickadapter").

    Raises:
        BadInputError: The model has no adapter of that kind.
    """
    if kind == "clickadapter":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            branch = DetailBranch()
        return {_DETAIL + name: value.detach().clone() for name, value in branch.state_dict().items()}
    if kind == "lora":
        return _untrained_factors(model, seed)
    if kind not in ADAPTER_KINDS:
        raise BadInputError(f"{model.model_id} has no adapter of kind {kind!r}. Known: {', '.join(ADAPTER_KINDS)}.")
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().float().cpu().clone() for name in model.adapter_parameter_names(kind)}


def adapted(model: InteractiveModel, tensors: Mapping[str, Tensor]) -> InteractiveModel:
    """A model that shares every weight with `model` but these: several adapters in memory cost only their own size.

    Args:
        model: Without an adapter; left as it is.
        tensors: Name to values, as `adapter_tensors` or a checked file gives them.
    """
    factors = {name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)}
    twin = _twin(model, {name for name, _ in model.named_parameters() if name in tensors} | factors)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
            elif name in factors:
                low = tensors[name + _UP].to(parameter) @ tensors[name + _DOWN].to(parameter)
                parameter.add_(low.view_as(parameter))
    detail = _detail_tensors(tensors)
    if not detail:
        return twin.eval()
    branch = DetailBranch().to(next(twin.parameters()).device)
    branch.load_state_dict(detail)
    return DetailAdapted(twin, branch).eval()


def student_of(
    model: InteractiveModel, tensors: Mapping[str, Tensor]
) -> tuple[InteractiveModel, dict[str, nn.Parameter]]:
    """A twin of a model whose adapter can be trained; nothing else asks for gradients.

    Args:
        model: Without an adapter; its values are left as they are.
        tensors: The adapter to start from.

    Returns:
        The twin in eval mode, and its trained parameters under the adapter's names.
    """
    student: InteractiveModel = _twin(model, {name for name, _ in model.named_parameters() if name in tensors})
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in list(student.named_parameters()):
        if name in tensors:
            with torch.no_grad():
                parameter.copy_(tensors[name])
            parameter.requires_grad_(True)
            trained[name] = parameter
    for name in sorted(name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)):
        holder, _, attribute = name.rpartition(".")
        module = student.get_submodule(holder)
        device = module.get_parameter(attribute).device
        low = _LowRank(tensors[name + _DOWN].to(device), tensors[name + _UP].to(device))
        parametrize.register_parametrization(module, attribute, low)
        trained |= {name + _DOWN: low.down, name + _UP: low.up}
    detail = _detail_tensors(tensors)
    if detail:
        branch = DetailBranch().to(next(student.parameters()).device)
        branch.load_state_dict(detail)
        student = DetailAdapted(student, branch)
        trained |= {_DETAIL + name: parameter for name, parameter in branch.named_parameters()}
    return student.eval(), trained


class _LowRank(nn.Module):
    """Weight + up @ down."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def _untrained_factors(model: InteractiveModel, seed: int) -> dict[str, Tensor]:
    """Down at random, up at zero, for every weight that "lora" touches."""
    try:
        names: tuple[str, ...] = model.adapter_parameter_names("lora")
    except BadInputError:  # it does not choose: all that "full" trains
        names = model.adapter_parameter_names("full")
    tensors: dict[str, Tensor] = {}
    for name in names:
        weight = model.get_parameter(name)
        if weight.ndim < 2:
            continue
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(LORA_RANK, rows, columns)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        tensors[name + _DOWN] = torch.randn(rank, columns, generator=generator) / columns**0.5
        tensors[name + _UP] = torch.zeros(rows, rank)
    return tensors


def _detail_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_DETAIL): value for name, value in tensors.items() if name.startswith(_DETAIL)}


def _twin(model: InteractiveModel, names: set[str]) -> InteractiveModel:
    """A copy that shares all parameters and buffers but the named ones."""
    own = {id(p) for name, p in model.named_parameters() if name in names}
    shared = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in own]
    return copy.deepcopy(model, memo={id(t): t for t in shared})

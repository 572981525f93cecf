"""Start a model from another's tensors: a shallower student from its teacher, a deeper one from a trained sibling."""

import copy
from dataclasses import replace

from core.errors import ToolError
from core.history import step
from core.torch_model import TorchModel, torch_digest


def init_from(model: TorchModel, donor: TorchModel) -> TorchModel:
    """Return a copy of a model that holds the donor's tensors wherever name and shape agree.

    A residual block that the donor does not have and whose last batch norm starts at zero (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677, section 5.1) passes its input on, so a deeper model starts as the donor.

    Args:
        model: What to start; left untouched.
        donor: Where tensors come from.

    Raises:
        ToolError: No tensor agrees.
    """
    module = copy.deepcopy(model.module)
    own = module.state_dict()
    taken = {
        name: tensor
        for name, tensor in donor.module.state_dict().items()
        if name in own and own[name].shape == tensor.shape
    }
    if not taken:
        raise ToolError(f"{model.name} shares no tensor of the same name and shape with {donor.name}")
    module.load_state_dict(taken, strict=False)
    done = step("init_from", {"tensors": len(taken), "of": len(own)}, parent=torch_digest(donor))
    return replace(model, module=module, history=(*model.history, done))

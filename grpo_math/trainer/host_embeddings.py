"""Input embeddings in host memory: a frozen table is only looked up in, so it need not take memory of the card."""

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel

from grpo_math.errors import ModelError


class HostEmbedding(torch.nn.Module):
    """
    A frozen embedding whose table stays in host memory: rows are looked up there and then moved to the ids' device.

    Args:
        embedding ([`~torch.nn.Embedding`]): Whose table it takes over, bit for bit.
    """

    def __init__(self, embedding: torch.nn.Embedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.weight = embedding.weight.detach().cpu()  # no parameter: moving or saving the module leaves it alone

    def forward(self, ids: torch.LongTensor) -> torch.Tensor:
        """Embeddings of ids of any shape, on their device."""
        return torch.nn.functional.embedding(ids.to(self.weight.device), self.weight).to(ids.device)


def embeddings_to_host(model: PreTrainedModel) -> None:
    """
    Moves the input embeddings of a model to host memory, in place; the model computes the same. Qwen2.5-7B's take 1.0 GiB.

    Raises:
        ModelError: when the table is also the LM head (tied), which needs it on the card, or an adapter trains it.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, HostEmbedding):
        return
    if not isinstance(embedding, torch.nn.Embedding):
        raise ModelError(
            f"embeddings_on_host: true: the adapter trains the input embeddings too (they are a {type(embedding).__name__}), "
            "which needs them on the card. Set embeddings_on_host: false."
        )
    if head is not None and head.weight is embedding.weight:
        raise ModelError(
            f"embeddings_on_host: true and {model.config._name_or_path or model.config.model_type}: its embeddings are also "
            "its LM head (tie_word_embeddings), which needs them on the card. Set embeddings_on_host: false."
        )
    model.set_input_embeddings(HostEmbedding(embedding))


def move_trainer_embeddings(model: PreTrainedModel | str, peft_config: object | None) -> None:
    """
    [`embeddings_to_host`] for the arguments of a trainer.

    Raises:
        ValueError: where the embeddings are trained (full fine-tuning, or named by the `peft_config`), or where `model` is
            only a name.
    """
    if isinstance(model, str):
        raise ValueError("embeddings_on_host=True needs the model itself: load it and pass it instead of its name.")
    if peft_config is None and not is_peft_model(model):
        raise ValueError(
            "embeddings_on_host=True and full fine-tuning contradict each other: embeddings that are trained are needed "
            "on the card. Pass a peft_config (use_peft: true), or set embeddings_on_host=False."
        )
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding).rpartition(".")[2]
    for option in ("modules_to_save", "target_modules", "trainable_token_indices"):
        if name in (getattr(peft_config, option, None) or ()):
            raise ValueError(
                f"embeddings_on_host=True and {option} of the peft_config, which names {name}, contradict each other: "
                f"embeddings that are trained are needed on the card. Take {name} out, or set embeddings_on_host=False."
            )
    embeddings_to_host(model)

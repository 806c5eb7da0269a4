"""Checkpoints of Hugging Face models that take an attention interface: BERT, RoBERTa, ESM, Llama and their kin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from scfast.attention import huggingface
from scfast.models import checkpoint
from scfast.models.calls import ModelBatch
from scfast.models.cards import Card
from scfast.models.tokenizer import Encoded, Tokenizer
from scfast.models.wrapped import Called, ModuleShape, WrappedSource

if TYPE_CHECKING:
    from scfast.attention.recorder import Recorder

_LOG = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Families that run packed: nothing in them but attention lets tokens see each other, and position_ids are obeyed.
PACKED = ("bert", "camembert", "electra", "gpt2", "llama", "roberta", "xlm-roberta")
#: Families whose first position is the one after the pad token's id.
POSITIONS_AFTER_PAD = ("camembert", "roberta", "xlm-roberta")
#: Weights that take no part in the states; a checkpoint may come without them.
UNUSED = ("pooler.", "contact_head.", "lm_head.", "cls.", "embeddings.position_ids")

CARD = Card(
    title="Hugging Face models that take an attention interface",
    files=(
        ("config.json", "of BERT, RoBERTa, ESM, ELECTRA, GPT-2, Llama, ...; not an encoder-decoder"),
        ("model.safetensors or pytorch_model.bin", "weights, also sharded"),
    ),
    notes=(
        "Shape and context are those of config.json; docs/any_encoder.md shows how cells become its tokens.",
        "BERT, RoBERTa, ELECTRA, GPT-2 and Llama run packed; others padded, pads left out of what is recorded.",
    ),
    tokenises=False,
)


def load(
    folder: str | Path,
    *,
    tokenize: Callable[..., Encoded] | None = None,
    vocabulary: Mapping[str, int] | None = None,
    gene_names: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    packed: bool | None = None,
    max_tokens: int | None = None,
    cls_position: int | Literal["auto"] | None = "auto",
    default_readout: Literal["cls", "mean"] | None = None,
) -> WrappedSource:
    """Load a Hugging Face checkpoint as a source; nothing is fetched and no code of the checkpoint is run.

    Parameters
    ----------
    folder
        ``config.json`` and weights. Heads are used where a gradient of their output is asked for, and nowhere else.
    tokenize, vocabulary, gene_names
        From counts to token ids: see :func:`scfast.models.wrap`.
    dtype
        Of weights and activations: torch.float32, bfloat16 or float16.
    packed
        Whether all cells run in one row, without pads. Default: for the families of :data:`PACKED`; the others are
        padded. True is an error for a family of which it is not known.
    max_tokens
        Longest cell. Default: the positions that the configuration has room for.
    cls_position
        Token of each cell that stands for the cell, -1 for the last; None if there is none. Default: the first, of
        causal models the last, which alone has seen the whole cell.
    default_readout
        Default: "cls" where there is one, else "mean".

    Raises
    ------
    FileNotFoundError
        When config or weights are missing.
    ValueError
        When weights are missing, of another shape or unreadable, or no class of transformers fits.
    NotImplementedError
        For encoder-decoders and sliding windows.

    Examples
    --------
    >>> import tempfile, transformers
    >>> config = transformers.BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    ...                                  intermediate_size=16, max_position_embeddings=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     transformers.BertModel(config).save_pretrained(folder)
    ...     source = load(folder).with_tokens([[2, 5, 7], [2, 9]])
    >>> import scfast
    >>> from scfast.observables import Rollout
    >>> with scfast.record(source, Rollout("cls")) as rec:
    ...     source.forward(source.prepared, rec)
    >>> [len(scores) for scores in rec["rollout"]]
    [3, 2]
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise TypeError(f"dtype={dtype} cannot be run; use one of {', '.join(map(str, DTYPES))}")
    settings = checkpoint.read_config(folder)
    module = _build(settings, folder, dtype)
    config, family = module.config, str(module.config.model_type)
    if packed and family not in PACKED:
        raise ValueError(
            f"packed=True: of {family!r} it is not known that a packed row gives what padded rows give; known are "
            f"{', '.join(PACKED)}. Leave packed out, and cells are padded"
        )
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    offset = (config.pad_token_id or 0) + 1 if family in POSITIONS_AFTER_PAD else 0
    if max_tokens is None and positions is None:
        raise ValueError(f"{folder / 'config.json'} does not say how long a cell may be: give max_tokens=")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = ModuleShape(
        config.num_hidden_layers, heads, head_dim, config.hidden_size,
        getattr(config, "num_key_value_heads", None) or heads,
    )  # fmt: skip
    if cls_position == "auto":
        causal = any(getattr(part, "is_causal", False) for part in module.modules())
        cls_position = -1 if causal else 0
    name = f"hf:{folder.resolve().name}"

    def call(model: Any, batch: ModelBatch) -> Any:
        if not batch.is_packed:
            return model(input_ids=batch.ids, attention_mask=batch.mask.long())
        starts, longest = batch.tokens.packing.cu_seqlens_q, max(batch.tokens.lengths)
        return model(
            input_ids=batch.ids, position_ids=batch.positions + offset,
            cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=longest, max_length_k=longest,
        )  # fmt: skip

    return WrappedSource(
        name, module, shape, call, _record, Tokenizer(tokenize, vocabulary, gene_names, config.vocab_size, name),
        max_tokens=int(positions or 0) - offset if max_tokens is None else max_tokens,
        cls_position=cls_position, default_readout=default_readout,
        packed=family in PACKED if packed is None else packed, pad=config.pad_token_id or 0,
        fresh=lambda seed: _fresh(module, seed), body=lambda model: getattr(model, "base_model", model),
    )  # fmt: skip


def _record(
    called: Called, recorder: Recorder, cls_position: int | None, batch: ModelBatch
) -> AbstractContextManager[None]:
    return huggingface.recording(called, recorder, cls_position, tokens=batch.tokens)


def _build(settings: dict[str, Any], folder: Path, dtype: torch.dtype) -> Any:
    """The model of ``config.json`` with the folder's weights, in eval mode."""
    import transformers

    if settings.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{folder / 'config.json'}: model_type={settings.get('model_type')!r} is no model of transformers "
            f"{transformers.__version__}; load it with its own code and use scfast.models.wrap"
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"{folder}: {config.model_type!r} is an encoder-decoder, whose cells attend across"
        )
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise NotImplementedError(
            f"{folder}: scfast attention does not implement sliding windows ({config.model_type})"
        )
    config.use_cache = False
    names = config.architectures or []
    architecture: Any = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
    if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
        architecture = transformers.MODEL_MAPPING[type(config)]
    try:
        model, info = architecture.from_pretrained(
            None,
            config=config,
            state_dict=checkpoint.read_tensors(folder),
            dtype=dtype,
            output_loading_info=True,
        )
    except RuntimeError as error:
        raise ValueError(f"{folder} does not fit its config.json: {str(error)[:2000]}") from None
    missing = sorted(name for name in info["missing_keys"] if not any(part in name for part in UNUSED))
    if missing:
        raise ValueError(
            f"{folder} does not fit its config.json: {len(missing)} weights are missing: {', '.join(missing[:20])}"
        )
    if unused := sorted(info["unexpected_keys"]):
        _LOG.warning(
            "%s: %d weights have no place in %s: %s", folder, len(unused), names, ", ".join(unused[:20])
        )
    return model.eval()


def _fresh(module: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(module)(module.config)

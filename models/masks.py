"""What stays of a model: boolean masks, how many parameters they leave, and how they are stored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prunebench.models.anatomy import Anatomy, ParamCount
from prunebench.models.errors import InvalidMasks

FORMAT = "prunebench-masks-1"  # one metadata key, since safetensors writes several in no fixed order


@dataclass(frozen=True, eq=False)
class Masks:
    """Boolean masks over the prunable units of one model; True stays. Tensors are on the CPU.

    Attributes:
        kv_groups: per layer (num_kv_groups,).
        q_heads: per layer (num_q_heads,); every kept group of a layer keeps the same number of query heads, at least one.
        ffn: per layer (mlp width,).
        hidden: (hidden_size,), the residual stream, shared by all layers.
        attn, mlp: (num_layers,), whole sub-layers; True exactly where the layer keeps a group or a channel.
    """

    kv_groups: tuple[Tensor, ...]
    q_heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    hidden: Tensor
    attn: Tensor
    mlp: Tensor

    @classmethod
    def of(
        cls,
        anatomy: Anatomy,
        *,
        kv_groups: Sequence[Tensor] | None = None,
        q_heads: Sequence[Tensor] | None = None,
        ffn: Sequence[Tensor] | None = None,
        hidden: Tensor | None = None,
        attn: Tensor | None = None,
        mlp: Tensor | None = None,
    ) -> Masks:
        """Masks from the parts that a method decided; whatever is left out stays whole.

        Query heads of a removed group go with it. A layer without `attn` or `mlp` loses all its groups or channels, and a
        layer without groups or channels loses the sub-layer.

        Raises:
            InvalidMasks: see `validate`.
        """
        sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
        groups = list(kv_groups) if kv_groups is not None else [torch.ones(g, dtype=torch.bool) for _, g, _ in sizes]
        heads = list(q_heads) if q_heads is not None else [torch.ones(h, dtype=torch.bool) for h, _, _ in sizes]
        channels = list(ffn) if ffn is not None else [torch.ones(c, dtype=torch.bool) for _, _, c in sizes]
        masks = cls(
            tuple(mask.detach().cpu() for mask in groups),
            tuple(mask.detach().cpu() for mask in heads),
            tuple(mask.detach().cpu() for mask in channels),
            torch.ones(anatomy.hidden_size, dtype=torch.bool) if hidden is None else hidden.detach().cpu(),
            torch.ones(len(sizes), dtype=torch.bool) if attn is None else attn.detach().cpu(),
            torch.ones(len(sizes), dtype=torch.bool) if mlp is None else mlp.detach().cpu(),
        )
        masks._check_shapes(anatomy)
        per_group = [layer.attention.q_heads_per_group if layer.attention else 1 for layer in anatomy.layers]
        kept_groups = tuple(mask & masks.attn[i] for i, mask in enumerate(masks.kv_groups))
        kept_heads = tuple(m & kept_groups[i].repeat_interleave(per_group[i]) for i, m in enumerate(masks.q_heads))
        kept_channels = tuple(mask & masks.mlp[i] for i, mask in enumerate(masks.ffn))
        masks = replace(
            masks,
            kv_groups=kept_groups,
            q_heads=kept_heads,
            ffn=kept_channels,
            attn=torch.tensor([bool(mask.any()) for mask in kept_groups]),
            mlp=torch.tensor([bool(mask.any()) for mask in kept_channels]),
        )
        masks.validate(anatomy)
        return masks

    def validate(self, anatomy: Anatomy) -> None:
        """Checks that these masks can be sliced into a real model.

        Raises:
            InvalidMasks: a mask of another shape or not boolean, a query head without its group, groups of a layer
                that keep different numbers of query heads, a sub-layer mask that contradicts its units, or no width left.
        """
        self._check_shapes(anatomy)
        if not self.hidden.any():
            raise InvalidMasks("mask hidden keeps nothing of the residual stream; at least one dimension must stay.")
        for i, layer in enumerate(anatomy.layers):
            for name, switch, units in (("attn", self.attn, self.kv_groups), ("mlp", self.mlp, self.ffn)):
                if bool(switch[i]) != bool(units[i].any()):
                    raise InvalidMasks(f"layer {i}: mask {name} is {bool(switch[i])}, but {int(units[i].sum())} of its units stay.")
            if layer.attention is None:
                continue
            per_group = self.q_heads[i].view(-1, layer.attention.q_heads_per_group).sum(1)
            if (per_group[~self.kv_groups[i]] > 0).any():
                raise InvalidMasks(f"layer {i} keeps a query head of a key/value group that it removes.")
            kept = per_group[self.kv_groups[i]]
            if len(kept) and (kept.min() != kept.max() or kept.min() == 0):
                raise InvalidMasks(
                    f"layer {i} keeps {kept.tolist()} query heads in its key/value groups; every kept group of a layer "
                    "must keep the same number, at least one."
                )

    def _check_shapes(self, anatomy: Anatomy) -> None:
        sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
        expected = {
            "kv_groups": [(g,) for _, g, _ in sizes],
            "q_heads": [(h,) for h, _, _ in sizes],
            "ffn": [(c,) for _, _, c in sizes],
        }
        for name, shapes in expected.items():
            masks = getattr(self, name)
            if len(masks) != len(shapes):
                raise InvalidMasks(f"masks {name} are for {len(masks)} layers; the model has {len(shapes)}.")
            for i, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
                _check(f"layer {i}: mask {name}", mask, shape)
        _check("mask hidden", self.hidden, (anatomy.hidden_size,))
        _check("mask attn", self.attn, (len(sizes),))
        _check("mask mlp", self.mlp, (len(sizes),))

    def count(self, anatomy: Anatomy) -> ParamCount:
        """The exact number of parameters of the model sliced by these masks."""
        hidden = int(self.hidden.sum())
        total, blocks = anatomy.outer_params(hidden), 0
        for i in range(len(self.ffn)):
            heads, groups, channels = int(self.q_heads[i].sum()), int(self.kv_groups[i].sum()), int(self.ffn[i].sum())
            for part in (
                anatomy.attention_params(i, heads, groups, hidden),
                anatomy.mlp_params(i, channels, hidden),
            ):
                total, blocks = total + part.total, blocks + part.blocks
        return ParamCount(total, blocks)

    def tensors(self) -> dict[str, Tensor]:
        """Every mask by name: `kv_groups.3`, `q_heads.3`, `ffn.3`, `hidden`, `attn`, `mlp`."""
        named = {f"{name}.{i}": mask for name in ("kv_groups", "q_heads", "ffn") for i, mask in enumerate(getattr(self, name))}
        return named | {"hidden": self.hidden, "attn": self.attn, "mlp": self.mlp}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        mine, theirs = self.tensors(), other.tensors()
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]

    def table(self) -> str:
        """One line a layer: kept / all KV groups, query heads and MLP channels; then the residual width."""
        lines = [f"{'layer':>5} {'kv groups':>10} {'q heads':>10} {'mlp channels':>14}"]
        for i in range(len(self.ffn)):
            cells = [f"{int(m[i].sum())}/{len(m[i])}" for m in (self.kv_groups, self.q_heads, self.ffn)]
            lines.append(f"{i:>5} {cells[0]:>10} {cells[1]:>10} {cells[2]:>14}")
        lines.append(f"residual width {int(self.hidden.sum())}/{len(self.hidden)}")
        return "\n".join(lines)

    __str__ = table

    def save(self, path: Path) -> None:
        """Writes the masks as one safetensors file; the file is complete or absent."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            tensors = {name: mask.contiguous().clone() for name, mask in self.tensors().items()}
            temporary.write_bytes(save(tensors, metadata={"format": FORMAT}))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Masks:
        """Reads masks that `save` wrote.

        Raises:
            InvalidMasks: no such file, truncated, another format or another version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                found = (file.metadata() or {}).get("format")
                if found != FORMAT:
                    raise InvalidMasks(f"mask file {path} has the format {found!r}; this prunebench reads {FORMAT!r}.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            layers = range(len(tensors["attn"]))
            groups, heads, channels = (tuple(tensors[f"{name}.{i}"] for i in layers) for name in ("kv_groups", "q_heads", "ffn"))
            return cls(groups, heads, channels, tensors["hidden"], tensors["attn"], tensors["mlp"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InvalidMasks(f"mask file {path} can't be read ({error}); it is missing, truncated or not a mask file.") from error


def _check(what: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool:
        raise InvalidMasks(f"{what} has dtype {str(mask.dtype).removeprefix('torch.')}; masks are boolean.")
    if tuple(mask.shape) != shape:
        raise InvalidMasks(f"{what} has shape {tuple(mask.shape)}; the model needs {shape}.")

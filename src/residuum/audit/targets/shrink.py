"""A narrower model of the same structure: a config's widths, heads, experts and vocabulary, all divided alike.

Three divisors do it. With `h` heads fewer and each `w` times narrower, everything that spans all heads, such as the
hidden size, becomes h·w times narrower; so products (heads · head_dim), sums (rope and no-rope parts) and equalities
that held before hold after, whatever the family. The number of layers and their kinds are never touched.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

HEAD_DIM, WIDTH, STREAM, VOCABULARY, LARGE, EVEN = 8, 16, 32, 1024, 64, 4

# What a field counts, read off its name. The first pattern that fits decides.
_ROLES = {
    "id": r"_token_ids?$|_token_index$|_(start|end)_ids?$|^(unk|pad|mask|bos|eos)_index$",
    "vocabulary": r"^(?!type_)(.*_)?vocab(_size|_size_.*)?$",
    "experts": r"^(num|n|moe_num|num_local|n_routed|num_routed|zero)_experts?(_num)?$|^num_zero_experts$",
    "chosen": r"experts_per_tok(en)?$|^(moe_)?top_?k(_experts)?$|^moe_k$",
    "expert groups": r"^(n|num_expert)_group$",
    "": r"^(num|max|min|n)_(?!embd|inner)(?!.*heads?$)(?!.*groups$)|(^|_)(image|patch|kernel|window|chunk|block|crop"
    r"|batch|type|pool|seq|length|state|layers?|positions?|mel|num_channels|frames?|rate|ratio)(_|$)",
    "groups": r"(kv|key_value).*heads$|kv_n_heads$|^(mamba_)?(num_)?(query_|n_)groups$|^multi_query_group_num$",
    "heads": r"heads(_per_layer)?$|(^|_)n_heads?$|^conf_num_attention_heads$",
    "head width": r"head_(dim|size|width)s?$|^d_(kv|head)$|dim_head$|_d_head$|^rotary_dim$|^mrope_section$|^key_dim$",
    "width": r"(^|_)(hidden|intermediate|inner|embed|embedding|ffn|ff|feed_forward|projection|proj|expand|emb|output)"
    r"_?(size|dim|width)s?(_.*)?$|(^|_)(dims?|ranks?|channels?|units|width|embd|n_inner|dff|d_model|d_inner|d_ff|ffn_dim"
    r"|d_embed|d_latents|d_ssm|upsample_groups|hidden_size)(_.*)?$|^dim_ff$|hidden_sizes$|_size_global$",
}
_PATTERNS = {role: re.compile(pattern) for role, pattern in _ROLES.items()}
_STREAM = re.compile(r"hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|hidden_dim")


class Divisors(NamedTuple):
    """How many times fewer heads and experts, how many times narrower a head."""

    heads: int
    head_width: int
    experts: int

    def apply(self, role: str, value: int) -> int:
        """The new value of a field; zero, negative and small ones stay."""
        if role == "heads" and value > 0:
            return max(value // self.heads, 1)
        if role == "groups" and value > 0:
            return value // self.heads if value % self.heads == 0 else 1
        if role == "head width" and value >= HEAD_DIM:
            return -(-value // self.head_width)
        if role == "width" and value >= WIDTH:
            exact, rest = divmod(value, self.heads * self.head_width)
            return exact if rest == 0 else -(-exact // EVEN) * EVEN + EVEN
        if role == "experts":
            return value // self.experts if value % self.experts == 0 else value
        if role == "vocabulary":
            return min(value, VOCABULARY)
        return value


def smaller(config: Any) -> Iterator[tuple[Any, str]]:
    """Smaller copies of a config and what was changed in each, the smallest first; the last has only fewer tokens.

    Not every model accepts every size, so the caller takes the first that builds and runs.
    """
    heads, width, experts = _heads(config), _head_width(config), _experts(config)
    while heads > 1 and _narrowest(config) // (heads * width) < STREAM:
        heads //= 2
    tried = [(heads, width, experts), (1, width, experts), (heads, 1, experts), (1, 1, experts), (1, 1, 1)]
    for divisors in dict.fromkeys(Divisors(*each) for each in tried):
        copied = copy.deepcopy(config)
        changed: dict[str, str] = {}
        ids = _large_ids(config)
        _rewrite(copied, divisors.apply, ids, changed)
        yield copied, ", ".join(f"{name} {change}" for name, change in changed.items())


def integers(config: Any) -> Iterator[tuple[str, int]]:
    """Every integer in a config and those below it, lists opened, with its name; none where there is no config."""
    for name, value in _items(config):
        if name.startswith("_"):
            continue
        if _is_node(value):
            yield from integers(value)
        else:
            yield from ((name, number) for number in _numbers(value))


def role_of(name: str) -> str:
    """What a field of this name counts; empty if it is no size that may change."""
    return next((role for role, pattern in _PATTERNS.items() if pattern.search(name)), "")


def _rewrite(config: Any, change: Callable[[str, int], int], ids: dict[int, int], changed: dict[str, str]) -> None:
    for name, value in list(_items(config)):
        if name.startswith("_"):
            continue
        if _is_node(value):
            _rewrite(value, change, ids, changed)
            continue
        role = role_of(name)
        new = _map(value, lambda number: ids.get(number, number)) if role == "id" else value
        new = _map(new, lambda number: change(role, number))  # noqa: B023 - called at once
        if new != value:
            if isinstance(config, dict):
                config[name] = new
            else:
                setattr(config, name, new)
            if role != "id" and not isinstance(value, (list, tuple)):
                changed.setdefault(name, f"{value} → {new}")


def _large_ids(config: Any) -> dict[int, int]:
    """Token ids above the new vocabulary, each given a place of its own at the vocabulary's end."""
    ids = {number for name, number in integers(config) if role_of(name) == "id" and number >= VOCABULARY - LARGE}
    return {number: VOCABULARY - 1 - place for place, number in enumerate(sorted(ids))}


def _heads(config: Any) -> int:
    """The largest power of two that divides every number of heads and leaves at least two."""
    counts = [number for name, number in integers(config) if role_of(name) == "heads" and number > 1]
    divisor = 1
    while counts and all(number % (divisor * 2) == 0 and number // (divisor * 2) >= 2 for number in counts):
        divisor *= 2
    return divisor


def _head_width(config: Any) -> int:
    """The largest power of two that leaves each head a width of 8; without heads, the stream one of 32."""
    widths = [number for name, number in integers(config) if role_of(name) == "head width" and number >= HEAD_DIM]
    heads = [number for name, number in integers(config) if role_of(name) == "heads"]
    least, most = HEAD_DIM, HEAD_DIM
    if heads and _narrowest(config):
        widths.append(_narrowest(config) // max(heads))
    elif not heads:
        widths, least, most = [_narrowest(config)], STREAM, _narrowest(config)
    divisor = 1
    while widths and all(number // (divisor * 2) >= least for number in widths) and divisor < most:
        divisor *= 2
    return divisor


def _narrowest(config: Any) -> int:
    """The least width of a stream; 0 if the config names none."""
    return min((number for name, number in integers(config) if _STREAM.fullmatch(name)), default=0)


def _experts(config: Any) -> int:
    """The largest power of two that leaves twice as many experts as are chosen, and two in each group."""
    found = list(integers(config))
    counts = [number for name, number in found if role_of(name) == "experts" and number > 1]
    chosen = [number for name, number in found if role_of(name) in ("chosen", "expert groups")]
    least = 2 * max([*chosen, 2])
    divisor = 1
    while counts and all(number % (divisor * 2) == 0 and number // (divisor * 2) >= least for number in counts):
        divisor *= 2
    return divisor


def _items(node: Any) -> list[tuple[str, Any]]:
    return [(str(k), v) for k, v in (node if isinstance(node, dict) else getattr(node, "__dict__", {})).items()]


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) or hasattr(value, "model_type")


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)
    elif type(value) is int:
        yield value


def _map(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_map(inner, change) for inner in value)
    return change(value) if type(value) is int else value

"""A least recently used memory over a whole sequence in one Triton kernel, one program for each episode.

The same function as `fewshot.kernels.lrua.scan`, for a GPU, where a step's thirty operations are thirty
launches of a few microseconds each. The memory and its gradient stay on the chip; products with the weights
stream these from the second-level cache, and pass their results through `product`, a scratch vector of each
episode's, from one layout of threads to another (hence the barriers). For the backward pass a step keeps its
memory, read weights, gates and interface; cosines, write weights and lengths are computed again. (The memory
of a step cannot be computed from the next: what was erased is gone. At 128 x 40 it is 20 kB of an episode's
step, which a GPU writes in nanoseconds.)

This module is imported where there is a GPU only. Its kernels are compiled from Python text by Triton: they
have no types for mypy, and what is in capitals is known when they are compiled.
"""

# ruff: noqa: N803, N806
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call,no-untyped-def,untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewshot.kernels.lrua import ScanOptions, ScanState
from fewshot.kernels.sequence import apply

_LAUNCH = {"num_warps": 16, "num_stages": 1, "enable_fp_fusion": True}
"""One program has a multiprocessor to itself, and hides the cache's latency by its number of threads."""

_TILE = 64
"""A tile of a product with the weights is as wide, and twice as long along the weights' rows."""


def scan(
    projected: Tensor,
    offsets: Tensor,
    recurrent_weight: Tensor,
    interface_weight: Tensor,
    state: ScanState,
    options: ScanOptions,
) -> tuple[Tensor, ScanState]:
    """See `fewshot.kernels.lrua.scan`; float32 on one device, a slot for every head."""
    with torch.cuda.device_of(projected):  # where Triton launches
        tensors = (projected, offsets, recurrent_weight, interface_weight, *state)
        outputs, *last = apply(_Scan, tensors, options)
    return outputs, ScanState(*last)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        offsets: Tensor,
        recurrent_weight: Tensor,
        interface_weight: Tensor,
        recurrent: Tensor,
        cell: Tensor,
        memory: Tensor,
        read_weights: Tensor,
        usage: Tensor,
        options: ScanOptions,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        batch, steps, gates = projected.shape
        (_, heads, slots), word, hidden = read_weights.shape, memory.shape[-1], interface_weight.shape[-1]
        interface, width = len(interface_weight), hidden + heads * word
        sharp = options.strength_offset is not None
        places = steps if keep else 1

        def with_start(start: Tensor) -> Tensor:
            """(batch, place + 1, ...) if the steps are kept, else (batch, 1, ...); the start is in front."""
            kept = start.new_empty(batch, places + keep, *start.shape[1:])
            kept[:, 0] = start
            return kept

        rows = projected.new_zeros(batch, steps + 1, width)
        rows[:, 0, width - recurrent.shape[1] :] = recurrent
        kept = {
            "memories": with_start(memory),
            "read_weights": with_start(read_weights),
            "cells": with_start(cell),
            "gates": projected.new_empty(batch, places, gates),
            "interfaces": projected.new_empty(batch, places, interface + heads * sharp),
            "ranks": torch.empty(batch, places, slots, dtype=torch.int32, device=projected.device),
        }
        weights = (recurrent_weight.contiguous(), interface_weight.contiguous())
        last_usage = usage.clone(memory_format=torch.contiguous_format)
        offsets = offsets if offsets.stride(-1) == 1 else offsets.contiguous()
        sizes = {
            "HIDDEN": hidden,
            "HEADS": heads,
            "WORD": word,
            "SLOTS": slots,
            "RECURRENT": recurrent.shape[1],
            "INTERFACE": interface,
            "LSTM": options.lstm,
            "APART": options.apart,
            "SHARP": sharp,
            "SHARED": options.shared,
            "HIDDEN_PADDED": triton.next_power_of_2(hidden),
            "WORD_PADDED": triton.next_power_of_2(word),
            "SLOTS_PADDED": triton.next_power_of_2(slots),
            "INTERFACE_PADDED": triton.next_power_of_2(interface),
            "TILE": _TILE,
        }
        _forward[(batch,)](
            projected.contiguous(),
            offsets,
            *weights,
            rows,
            last_usage,
            *kept.values(),
            projected.new_empty(batch, max(gates, interface)),
            steps,
            places if keep else 0,
            offsets.stride(0),
            offsets.stride(1),
            options.usage_decay,
            options.strength_offset or 0.0,
            **sizes,
            **_LAUNCH,
        )
        if keep:
            ctx.sizes = sizes
            ctx.save_for_backward(*weights, rows, *kept.values())
        ctx.mark_non_differentiable(last_usage)
        last = (kept[name][:, -1].clone() for name in ("cells", "memories", "read_weights"))
        return (rows[:, 1:], *last, last_usage)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        recurrent_weight, interface_weight, rows, *kept = ctx.saved_tensors
        hidden, recurrent = interface_weight.shape[1], recurrent_weight.shape[1]
        batch, steps, width = len(rows), rows.shape[1] - 1, rows.shape[2]
        outputs_gradient = gradients[0].contiguous()
        # Gradients of the last state, which the kernel turns into those of the first.
        cell, memory, read_weights = (
            gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients[1:4]
        )
        carried = rows.new_zeros(batch, width)
        projected = rows.new_empty(batch, steps, len(recurrent_weight))
        offsets = rows.new_empty(batch, steps, len(interface_weight))
        _backward[(batch,)](
            outputs_gradient,
            recurrent_weight,
            interface_weight,
            *kept,
            cell,
            memory,
            read_weights,
            carried,
            projected,
            offsets,
            rows.new_empty(batch, hidden),
            steps,
            **ctx.sizes,
            **_LAUNCH,
        )
        flat = projected.flatten(0, 1), offsets.flatten(0, 1)
        recurrent_gradient = flat[0].t() @ rows[:, :-1, width - recurrent :].flatten(0, 1)
        interface_gradient = flat[1].t() @ rows[:, 1:, :hidden].flatten(0, 1)
        start = (carried[:, width - recurrent :], cell, memory, read_weights)
        return (projected, offsets, recurrent_gradient, interface_gradient, *start, None, None, None)


@triton.jit
def _tanh(x):
    """By its series where the difference of two numbers near one would lose digits."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
    return tl.where(tl.abs(x) < 0.2, series, 2 / (1 + tl.exp(-2 * x)) - 1)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _inverse_length(square):
    return 1 / tl.sqrt(square + 1e-16)


@triton.jit
def _multiply(
    out, weight, vector, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """out(i) = sum over j of weight(i, j) vector(j)"""
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, columns, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = (row < rows)[:, None] & (column < columns)[None, :]
            places = row[:, None] * row_stride + column[None, :] * column_stride
            numbers = tl.load(vector + column, mask=column < columns, other=0.0)
            total += tl.load(weight + places, mask=inside, other=0.0) * numbers[None, :]
        tl.store(out + row, tl.sum(total, 1), mask=row < rows)


@triton.jit
def _write_weights(before, gate, rank, head: tl.constexpr, HEADS: tl.constexpr, SHARED: tl.constexpr):
    least_used = (rank < HEADS) if SHARED else (rank == head)
    return gate * before + tl.where(least_used, 1 - gate, 0.0)


@triton.jit
def _forward(
    projected,
    offsets,
    recurrent_weight,
    interface_weight,
    rows,
    last_usage,
    memories,
    read_weights,
    cells,
    gates,
    interfaces,
    ranks,
    product,
    steps,
    kept,  # steps that are kept; 0: none, and all lie in one place
    offset_episode,
    offset_step,
    usage_decay,
    strength_offset,
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    WORD: tl.constexpr,
    SLOTS: tl.constexpr,
    RECURRENT: tl.constexpr,
    INTERFACE: tl.constexpr,
    LSTM: tl.constexpr,
    APART: tl.constexpr,
    SHARP: tl.constexpr,
    SHARED: tl.constexpr,
    HIDDEN_PADDED: tl.constexpr,
    WORD_PADDED: tl.constexpr,
    SLOTS_PADDED: tl.constexpr,
    INTERFACE_PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    WORDS: tl.constexpr = HEADS * WORD
    WIDTH: tl.constexpr = HIDDEN + WORDS
    GATES: tl.constexpr = 4 * HIDDEN if LSTM else HIDDEN
    VECTORS: tl.constexpr = 2 * WORDS if APART else WORDS
    ACTIVATED: tl.constexpr = INTERFACE + (HEADS if SHARP else 0)
    LARGEST: tl.constexpr = GATES if GATES > INTERFACE else INTERFACE
    episode = tl.program_id(0).to(tl.int64)
    unit, slot, word = tl.arange(0, HIDDEN_PADDED), tl.arange(0, SLOTS_PADDED), tl.arange(0, WORD_PADDED)
    is_unit, is_slot, is_word = unit < HIDDEN, slot < SLOTS, word < WORD
    places, is_place = slot[:, None] * WORD + word[None, :], is_slot[:, None] & is_word[None, :]
    element = tl.arange(0, INTERFACE_PADDED)
    product += episode * LARGEST

    starts = tl.where(kept > 0, kept + 1, 1) * episode
    memory = tl.load(memories + starts * SLOTS * WORD + places, mask=is_place, other=0.0)
    usage = tl.load(last_usage + episode * SLOTS + slot, mask=is_slot, other=float("inf"))
    if LSTM:
        cell = tl.load(cells + starts * HIDDEN + unit, mask=is_unit, other=0.0)
    for step in range(steps):
        place = tl.where(kept > 0, episode * kept + step, episode)
        before = tl.where(kept > 0, starts + step, starts)
        now = tl.where(kept > 0, before + 1, starts)
        row = rows + (episode * (steps + 1) + step) * WIDTH

        # The controller.
        _multiply(
            product, recurrent_weight, row + WIDTH - RECURRENT, GATES, RECURRENT, RECURRENT, 1, TILE, 2 * TILE
        )
        tl.debug_barrier()
        row += WIDTH
        given = projected + (episode * steps + step) * GATES
        if LSTM:
            keep = _sigmoid(tl.load(product + unit, is_unit, 0.0) + tl.load(given + unit, is_unit, 0.0))
            part = HIDDEN + unit
            write = _sigmoid(tl.load(product + part, is_unit, 0.0) + tl.load(given + part, is_unit, 0.0))
            part += HIDDEN
            show = _sigmoid(tl.load(product + part, is_unit, 0.0) + tl.load(given + part, is_unit, 0.0))
            part += HIDDEN
            candidate = _tanh(tl.load(product + part, is_unit, 0.0) + tl.load(given + part, is_unit, 0.0))
            cell = keep * cell + write * candidate
            hidden = show * _tanh(cell)
            kept_gates = gates + place * GATES + unit
            tl.store(kept_gates, keep, is_unit)
            tl.store(kept_gates + HIDDEN, write, is_unit)
            tl.store(kept_gates + 2 * HIDDEN, show, is_unit)
            tl.store(kept_gates + 3 * HIDDEN, candidate, is_unit)
            tl.store(cells + now * HIDDEN + unit, cell, is_unit)
        else:
            summed = tl.load(product + unit, is_unit, 0.0) + tl.load(given + unit, is_unit, 0.0)
            hidden = tl.maximum(summed, 0.0)
            tl.store(gates + place * GATES + unit, hidden, is_unit)
        tl.store(row + unit, hidden, is_unit)
        tl.debug_barrier()

        # The interface: vectors, write gates, strengths; behind these, the slopes of the strengths.
        _multiply(product, interface_weight, row, INTERFACE, HIDDEN, HIDDEN, 1, TILE, 2 * TILE)
        tl.debug_barrier()
        interface = interfaces + place * ACTIVATED
        added = offsets + episode * offset_episode + step * offset_step
        is_element = element < INTERFACE
        raw = tl.load(product + element, is_element, 0.0) + tl.load(added + element, is_element, 0.0)
        slope = _sigmoid(raw)
        active = tl.where(element < VECTORS, _tanh(raw), slope)
        if SHARP:
            is_strength = is_element & (element >= VECTORS + HEADS)
            softplus = tl.where(raw > 20, raw, tl.log(1 + tl.exp(tl.minimum(raw, 20.0))))
            active = tl.where(is_strength, strength_offset + softplus, active)
            tl.store(interface + HEADS + element, slope, is_strength)
        tl.store(interface + element, active, is_element)
        tl.debug_barrier()

        # The n least used slots, by rank; of equals the lower one.
        rank = tl.full([SLOTS_PADDED], HEADS, tl.int32)
        left = usage
        for head in tl.static_range(HEADS):
            chosen = tl.min(tl.where(left == tl.min(left, 0), slot, SLOTS_PADDED), 0)
            rank = tl.where(slot == chosen, head, rank)
            left = tl.where(slot == chosen, float("inf"), left)
        tl.store(ranks + place * SLOTS + slot, rank, is_slot)

        # Erase, then write.
        memory = tl.where((rank == 0)[:, None], 0.0, memory)
        usage = usage_decay * usage
        for head in tl.static_range(HEADS):
            gate = tl.load(interface + VECTORS + head)
            looked = tl.load(read_weights + (before * HEADS + head) * SLOTS + slot, is_slot, 0.0)
            written = _write_weights(looked, gate, rank, head, HEADS, SHARED)
            add = tl.load(interface + VECTORS - WORDS + head * WORD + word, is_word, 0.0)
            memory += written[:, None] * add[None, :]
            usage += written
        tl.store(memories + now * SLOTS * WORD + places, memory, is_place)
        tl.debug_barrier()

        # Address, then read.
        inverse = _inverse_length(tl.sum(memory * memory, 1))
        for head in tl.static_range(HEADS):
            key = tl.load(interface + head * WORD + word, is_word, 0.0)
            scale = _inverse_length(tl.sum(key * key, 0))
            if SHARP:
                scale *= tl.load(interface + VECTORS + HEADS + head)
            score = tl.where(is_slot, tl.sum(memory * key[None, :], 1) * inverse * scale, float("-inf"))
            weight = tl.exp(score - tl.max(score, 0))
            weight /= tl.sum(weight, 0)
            usage += weight
            tl.store(read_weights + (now * HEADS + head) * SLOTS + slot, weight, is_slot)
            tl.store(row + HIDDEN + head * WORD + word, tl.sum(weight[:, None] * memory, 0), is_word)
        tl.debug_barrier()
    tl.store(last_usage + episode * SLOTS + slot, usage, is_slot)


@triton.jit
def _backward(
    outputs_gradient,
    recurrent_weight,
    interface_weight,
    memories,
    read_weights,
    cells,
    gates,
    interfaces,
    ranks,
    cell_gradients,
    memory_gradients,
    reading_gradients,
    carried,
    projected_gradient,
    offsets_gradient,
    product,
    steps,
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    WORD: tl.constexpr,
    SLOTS: tl.constexpr,
    RECURRENT: tl.constexpr,
    INTERFACE: tl.constexpr,
    LSTM: tl.constexpr,
    APART: tl.constexpr,
    SHARP: tl.constexpr,
    SHARED: tl.constexpr,
    HIDDEN_PADDED: tl.constexpr,
    WORD_PADDED: tl.constexpr,
    SLOTS_PADDED: tl.constexpr,
    INTERFACE_PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    WORDS: tl.constexpr = HEADS * WORD
    WIDTH: tl.constexpr = HIDDEN + WORDS
    GATES: tl.constexpr = 4 * HIDDEN if LSTM else HIDDEN
    VECTORS: tl.constexpr = 2 * WORDS if APART else WORDS
    ACTIVATED: tl.constexpr = INTERFACE + (HEADS if SHARP else 0)
    episode = tl.program_id(0).to(tl.int64)
    unit, slot, word = tl.arange(0, HIDDEN_PADDED), tl.arange(0, SLOTS_PADDED), tl.arange(0, WORD_PADDED)
    is_unit, is_slot, is_word = unit < HIDDEN, slot < SLOTS, word < WORD
    places, is_place = slot[:, None] * WORD + word[None, :], is_slot[:, None] & is_word[None, :]
    product += episode * HIDDEN
    carried += episode * WIDTH
    reading_gradients += episode * HEADS * SLOTS

    memory_gradients += episode * SLOTS * WORD + places
    memory_gradient = tl.load(memory_gradients, is_place, 0.0)
    if LSTM:
        cell_gradients += episode * HIDDEN + unit
        cell_gradient = tl.load(cell_gradients, is_unit, 0.0)
    for done in range(steps):
        step = steps - 1 - done
        place, before = episode * steps + step, episode * (steps + 1) + step
        received = outputs_gradient + place * WIDTH
        interface = interfaces + place * ACTIVATED
        gradient = offsets_gradient + place * INTERFACE
        rank = tl.load(ranks + place * SLOTS + slot, is_slot, HEADS)
        memory = tl.load(memories + (before + 1) * SLOTS * WORD + places, is_place, 0.0)
        inverse = _inverse_length(tl.sum(memory * memory, 1))

        # reads = read_weights x memory; read_weights = softmax(strength * cosine).
        shrink = tl.zeros([SLOTS_PADDED], tl.float32)
        for head in tl.static_range(HEADS):
            part = HIDDEN + head * WORD + word
            of_read = tl.load(received + part, is_word, 0.0) + tl.load(carried + part, is_word, 0.0)
            weight = tl.load(read_weights + ((before + 1) * HEADS + head) * SLOTS + slot, is_slot, 0.0)
            of_weight = tl.load(reading_gradients + head * SLOTS + slot, is_slot, 0.0)
            of_weight += tl.sum(memory * of_read[None, :], 1)
            of_score = weight * (of_weight - tl.sum(weight * of_weight, 0))
            key = tl.load(interface + head * WORD + word, is_word, 0.0)
            scale = _inverse_length(tl.sum(key * key, 0))
            along = of_score * tl.sum(memory * key[None, :], 1) * inverse * scale
            of_strength = tl.sum(along, 0)
            if SHARP:
                strength = tl.load(interface + VECTORS + HEADS + head)
                slope = tl.load(interface + INTERFACE + head)
                tl.store(gradient + VECTORS + HEADS + head, of_strength * slope)
                of_score *= strength
                along *= strength
                of_strength *= strength
            pull = of_score * inverse * scale
            shrink += along
            memory_gradient += weight[:, None] * of_read[None, :] + pull[:, None] * key[None, :]
            of_key = tl.sum(pull[:, None] * memory, 0) - of_strength * scale * scale * key
            tl.store(gradient + head * WORD + word, of_key * (1 - key * key), is_word)
        memory_gradient -= (shrink * inverse * inverse)[:, None] * memory
        tl.debug_barrier()

        # memory = memory before, the least used slot erased, + write_weights x adds.
        for head in tl.static_range(HEADS):
            gate = tl.load(interface + VECTORS + head)
            looked = tl.load(read_weights + (before * HEADS + head) * SLOTS + slot, is_slot, 0.0)
            written = _write_weights(looked, gate, rank, head, HEADS, SHARED)
            add = tl.load(interface + VECTORS - WORDS + head * WORD + word, is_word, 0.0)
            of_add = tl.sum(written[:, None] * memory_gradient, 0) * (1 - add * add)
            out = gradient + VECTORS - WORDS + head * WORD + word
            if not APART:
                of_add += tl.load(out, is_word, 0.0)
            tl.store(out, of_add, is_word)
            of_written = tl.sum(memory_gradient * add[None, :], 1)
            of_gate = tl.sum(of_written * (looked - _write_weights(0.0, 0.0, rank, head, HEADS, SHARED)), 0)
            tl.store(gradient + VECTORS + head, of_gate * gate * (1 - gate))
            tl.store(reading_gradients + head * SLOTS + slot, gate * of_written, is_slot)
        memory_gradient = tl.where((rank == 0)[:, None], 0.0, memory_gradient)
        tl.debug_barrier()

        # The interface and the controller, back to what the step was fed with.
        _multiply(product, interface_weight, gradient, HIDDEN, INTERFACE, 1, HIDDEN, 2 * TILE, TILE)
        tl.debug_barrier()
        of_hidden = tl.load(received + unit, is_unit, 0.0) + tl.load(carried + unit, is_unit, 0.0)
        of_hidden += tl.load(product + unit, is_unit, 0.0)
        kept_gates = gates + place * GATES + unit
        out = projected_gradient + place * GATES + unit
        if LSTM:
            keep = tl.load(kept_gates, is_unit, 0.0)
            write = tl.load(kept_gates + HIDDEN, is_unit, 0.0)
            show = tl.load(kept_gates + 2 * HIDDEN, is_unit, 0.0)
            candidate = tl.load(kept_gates + 3 * HIDDEN, is_unit, 0.0)
            cell_before = tl.load(cells + before * HIDDEN + unit, is_unit, 0.0)
            shown = _tanh(tl.load(cells + (before + 1) * HIDDEN + unit, is_unit, 0.0))
            cell_gradient += of_hidden * show * (1 - shown * shown)
            tl.store(out, cell_gradient * cell_before * keep * (1 - keep), is_unit)
            tl.store(out + HIDDEN, cell_gradient * candidate * write * (1 - write), is_unit)
            tl.store(out + 2 * HIDDEN, of_hidden * shown * show * (1 - show), is_unit)
            tl.store(out + 3 * HIDDEN, cell_gradient * write * (1 - candidate * candidate), is_unit)
            cell_gradient *= keep
        else:
            tl.store(out, tl.where(tl.load(kept_gates, is_unit, 0.0) > 0, of_hidden, 0.0), is_unit)
        tl.debug_barrier()
        _multiply(
            carried + WIDTH - RECURRENT,
            recurrent_weight,
            projected_gradient + place * GATES,
            RECURRENT,
            GATES,
            1,
            RECURRENT,
            2 * TILE,
            TILE,
        )
        tl.debug_barrier()
    tl.store(memory_gradients, memory_gradient, is_place)
    if LSTM:
        tl.store(cell_gradients, cell_gradient, is_unit)

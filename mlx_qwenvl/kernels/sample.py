"""One token a row from probabilities: top-k, top-p, min-p and the draw, on Metal without a sort.

Sums are of integers, so the kernel, which finds by counting what the twin finds by sorting, keeps
the same tokens and draws the same one. For a row of probabilities p:

* Tokens rank by p, largest first, and by their id where p is equal.
* A token's mass is 2^31 p + 1/2 in float32, rounded down. What is less likely than 2^-32 is never
  drawn.
* Top-k keeps the first k. Top-p keeps those before which less than its share of what top-k left
  is reached. Min-p keeps those with p of at least its floor.
* With M the mass that is kept and u in 0..2^32 - 1 what chance gave, the token is the first in the
  order of ids up to and with which more than M u / 2^32 is reached.

Axes: B rows, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_qwenvl.kernels.metal import MetalKernel

NO_TOKEN = -1  # drawn where the probabilities are NaN
ROW_THREADS = 512  # half of what a group may have, so that registers never limit the launch
UNIT = 2.0**31  # mass of a row; the sum of its float32 probabilities may be a little more than 1


@dataclass(frozen=True)
class Filters:
    """Which tokens of each row may be drawn; made once for many steps.

    Attributes:
        top_k: Tokens to keep [B, 1] uint32; V and more keep all.
        beyond: What top-p leaves out of the mass [B, 1] uint64, in units of 2^-32; 0 keeps all.
        min_p: Least p as a fraction of the largest [B, 1] float32; 0 keeps all.
        with_k: Whether any row has a top-k.
        with_p: Whether any row has a top-p.
        with_floor: Whether any row has a min-p.
    """

    top_k: mx.array
    beyond: mx.array
    min_p: mx.array
    with_k: bool
    with_p: bool
    with_floor: bool

    def floor(self, p: mx.array) -> mx.array:
        """Least p of each row [B, 1]."""
        return p.max(axis=-1, keepdims=True) * self.min_p if self.with_floor else self.min_p


def sample_twin(p: mx.array, chance: mx.array, filters: Filters) -> mx.array:
    """Draw one token for each row.

    Args:
        p: Probabilities [B, V] float32, of which each row sums to 1, or is all NaN.
        chance: u of each row [B, 1], uint64.
        filters: Which may be drawn.

    Returns:
        The tokens [B] int32.
    """
    reached = mx.cumsum(kept_mass(p, filters), axis=-1)
    token = (reached <= _share(reached[:, -1:], chance)).sum(axis=-1)
    return mx.where(mx.isnan(p[:, 0]), NO_TOKEN, token)


def kept_mass(p: mx.array, filters: Filters) -> mx.array:
    """Masses [B, V] uint32 of p, 0 where a filter leaves a token out."""
    mass = (p * UNIT + 0.5).astype(mx.uint32)
    if filters.with_k or filters.with_p:
        mass = _first(mass, p, filters)
    if filters.with_floor:
        mass = mx.where(p >= filters.floor(p), mass, 0)
    return mass


def _first(mass: mx.array, p: mx.array, filters: Filters) -> mx.array:
    """Masses [B, V] of p, 0 where top-k or top-p leaves a token out."""
    order = mx.argsort(-p.view(mx.int32), axis=-1)  # bits of what is not negative rank as it does
    ranked = mx.take_along_axis(mass, order, axis=-1)
    if filters.with_k:
        ranked = mx.where(mx.arange(p.shape[-1], dtype=mx.uint32) < filters.top_k, ranked, 0)
    if filters.with_p:
        reached = mx.cumsum(ranked, axis=-1)
        total = reached[:, -1:]
        before = reached - ranked
        ranked = mx.where(before < total - _share(total, filters.beyond), ranked, 0)
    return mx.put_along_axis(mx.zeros_like(mass), order, ranked, axis=-1)


def _share(mass: mx.array, part: mx.array) -> mx.array:
    """Mass times part / 2^32, rounded down."""
    return ((mass.astype(mx.uint64) * part) >> 32).astype(mx.uint32)


KERNEL = MetalKernel(
    name="sample",
    inputs=("p", "chance", "top_k", "beyond", "floors"),
    outputs=("token",),
    source="""
    // One threadgroup a row, which it reads again and again instead of sorting it. Sums of the
    // mass stay below 2^32.
    constexpr float UNIT = 2147483648.0f;  // 2^31
    constexpr uint ONE = 0x3f800000;  // bits of 1.0f
    constexpr uint GROUPS = THREADS / 32;
    constexpr uint BITS = 10;
    constexpr uint BINS = 1 << BITS;
    constexpr uint EACH = BINS / THREADS;  // bins of a thread, side by side
    threadgroup atomic_uint counts[BINS];
    threadgroup atomic_uint masses[BINS];
    threadgroup uint group_count[GROUPS];
    threadgroup uint group_mass[GROUPS];
    threadgroup uint found[4];
    uint me = thread_position_in_threadgroup.x;
    uint lane = thread_index_in_simdgroup;
    uint group = simdgroup_index_in_threadgroup;
    uint row = threadgroup_position_in_grid.x;
    size_t start = size_t(row) * V;
    // A row with one NaN is all NaN. Told by its bits, which no fast arithmetic can leave out.
    if ((as_type<uint>(p[start]) & 0x7fffffff) > 0x7f800000) {
        if (me == 0) {
            token[row] = -1;
        }
        return;
    }

    // Kept are the values of a depth below `cut`, and of that depth the first `ties` ids, if not
    // `all`. Depths are 0 where p is 1, and 2^30 at most: a float's bits rank as it does.
    uint cut = 0xffffffff;
    uint ties = 0;
    bool all = true;
    uint total = 0;
    for (uint stage = 0; stage < 2; ++stage) {
        bool by_count = stage == 0;  // top-k, then top-p
        if (by_count ? top_k[row] >= V : beyond[row] == 0) {
            continue;
        }
        // Find the depth at which the count or the mass of what ranks first reaches the goal: the
        // first bits of it, then the next among those that begin so, then the last.
        uint goal = top_k[row];
        uint begin = 0;
        uint count_ahead = 0;  // of what ranks before all that begin so
        uint mass_ahead = 0;
        for (int shift = 20; shift >= 0; shift -= BITS) {
            for (uint b = me; b < BINS; b += THREADS) {
                atomic_store_explicit(&counts[b], 0u, memory_order_relaxed);
                atomic_store_explicit(&masses[b], 0u, memory_order_relaxed);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = me; i < V; i += THREADS) {
                uint mass = uint(p[start + i] * UNIT + 0.5f);
                uint depth = ONE - metal::min(as_type<uint>(p[start + i]), ONE);
                if (mass != 0 && depth >> (shift + BITS) == begin) {
                    uint bin = (depth >> shift) % BINS;
                    atomic_fetch_add_explicit(&counts[bin], 1u, memory_order_relaxed);
                    atomic_fetch_add_explicit(&masses[bin], mass, memory_order_relaxed);
                }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);

            uint my_count[EACH];
            uint my_mass[EACH];
            uint count = 0;
            uint mass = 0;
            for (uint e = 0; e < EACH; ++e) {
                my_count[e] = atomic_load_explicit(&counts[me * EACH + e], memory_order_relaxed);
                my_mass[e] = atomic_load_explicit(&masses[me * EACH + e], memory_order_relaxed);
                count += my_count[e];
                mass += my_mass[e];
            }
            uint count_before = simd_prefix_exclusive_sum(count);
            uint mass_before = simd_prefix_exclusive_sum(mass);
            if (lane == 31) {
                group_count[group] = count_before + count;
                group_mass[group] = mass_before + mass;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            count_before += count_ahead;
            mass_before += mass_ahead;
            uint whole_count = 0;
            uint whole_mass = 0;
            for (uint g = 0; g < GROUPS; ++g) {
                count_before += g < group ? group_count[g] : 0;
                mass_before += g < group ? group_mass[g] : 0;
                whole_count += group_count[g];
                whole_mass += group_mass[g];
            }
            if (shift == 20) {
                total = total == 0 ? whole_mass : total;
                goal = by_count ? metal::min(goal, whole_count)
                                : total - uint((ulong(total) * beyond[row]) >> 32);
            }
            for (uint e = 0; e < EACH; ++e) {
                uint reached = by_count ? count_before : mass_before;
                if (reached < goal && goal - reached <= (by_count ? my_count[e] : my_mass[e])) {
                    found[0] = me * EACH + e;
                    found[1] = count_before;
                    found[2] = mass_before;
                    found[3] = my_count[e];
                }
                count_before += my_count[e];
                mass_before += my_mass[e];
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            begin = begin * BINS + found[0];
            count_ahead = found[1];
            mass_ahead = found[2];
            if (shift == 0) {
                uint mass_of_one = uint(as_type<float>(ONE - begin) * UNIT + 0.5f);
                cut = begin;
                ties = by_count ? goal - count_ahead
                                : (goal - mass_ahead + mass_of_one - 1) / mass_of_one;
                all = ties == found[3];
                total = mass_ahead + ties * mass_of_one;
            }
        }
    }

    // Walk in the order of ids: to the last tie that is kept, then to the token. Each SIMD-group
    // adds up a piece of the row, and the one whose piece the goal lies in goes through it again.
    uint piece = (V + GROUPS - 1) / GROUPS;
    uint first = group * piece;
    uint end = metal::min(uint(V), first + piece);
    uint limit = V;
    for (uint walk = all ? 1 : 0; walk < 2; ++walk) {
        bool to_tie = walk == 0;
        uint goal = 0;
        uint reached = 0;
        for (uint pass = 0; pass < 2; ++pass) {
            for (uint i = first; i < end; i += 32) {
                uint weight = 0;
                uint id = i + lane;
                if (id < end) {
                    float value = p[start + id];
                    uint depth = ONE - metal::min(as_type<uint>(value), ONE);
                    if (to_tie) {
                        weight = depth == cut ? 1 : 0;
                    } else if (value >= floors[row] &&
                        (depth < cut || (depth == cut && id < limit))) {
                        weight = uint(value * UNIT + 0.5f);
                    }
                }
                uint upto = reached + simd_prefix_inclusive_sum(weight);
                if (pass == 1 && upto - weight <= goal && goal < upto) {
                    found[0] = id;
                }
                reached = simd_max(upto);
            }
            if (pass == 0) {
                if (lane == 0) {
                    group_mass[group] = reached;
                }
                threadgroup_barrier(mem_flags::mem_threadgroup);
                uint before = 0;
                uint whole = 0;
                for (uint g = 0; g < GROUPS; ++g) {
                    before += g < group ? group_mass[g] : 0;
                    whole += group_mass[g];
                }
                goal = to_tie ? ties - 1 : uint((ulong(whole) * chance[row]) >> 32);
                if (goal < before || goal >= before + reached) {
                    break;
                }
                reached = before;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (to_tie) {
            limit = found[0] + 1;
        } else if (me == 0) {
            token[row] = int(found[0]);
        }
    }
""",
)


def sample(p: mx.array, chance: mx.array, filters: Filters) -> mx.array:
    """The same token in one launch."""
    batch, vocabulary = p.shape
    if p.dtype != mx.float32 or p.size == 0:
        return sample_twin(p, chance, filters)
    (token,) = KERNEL(
        [p, chance, filters.top_k, filters.beyond, filters.floor(p)],
        template=[("V", vocabulary), ("THREADS", ROW_THREADS)],
        grid=(batch * ROW_THREADS, 1, 1),
        threadgroup=(ROW_THREADS, 1, 1),
        shapes=[(batch,)],
        dtype=mx.int32,
    )
    return token

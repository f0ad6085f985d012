// What a paged attention op reads, and how a step's attention is cut into units of work.
//
// Units are cut by lengths, trees and slots alone, and how they are cut never shows in a result.
#pragma once
#include <algorithm>
#include <limits>

#include "dense.h"
#include "tiles.h"

namespace bl {

constexpr int KEYS = 128;
constexpr int TILE_ROWS = 96;  // query rows of a tile: tokens times query heads per KV head
constexpr float MINUS_INF = -std::numeric_limits<float>::infinity();

// Operands of a paged attention op, by name.
struct Attention {
    const float* q;
    const void *k_pool, *v_pool;
    const int32_t *rows, *slot_table, *seq_lens, *extend_lens, *extend_start;
    const int32_t *tree_lens, *tree_offsets;
    const uint64_t* tree_words;
    float* out;
    int hq, hkv, d, ctx;
    bool bf16;
    float scale;
    explicit Attention(const Op& op)
        : q((const float*)op.p[0]), k_pool(op.p[1]), v_pool(op.p[2]), rows((int32_t*)op.p[3]),
          slot_table((int32_t*)op.p[4]), seq_lens((int32_t*)op.p[5]),
          extend_lens((int32_t*)op.p[6]), extend_start((int32_t*)op.p[7]),
          tree_lens((int32_t*)op.p[8]), tree_offsets((int32_t*)op.p[9]),
          tree_words((uint64_t*)op.p[10]), out((float*)op.p[11]), hq(op.i[0]), hkv(op.i[1]),
          d(op.i[2]), ctx(op.i[4]), bf16(op.i[3]), scale(op.f[0]) {}
    int group() const { return hq / hkv; }
    int tile_tokens() const { return std::max(1, TILE_ROWS / group()); }
    int tile_rows() const { return tile_tokens() * group(); }
    int padded() const { return (d + PANEL - 1) / PANEL * PANEL; }
    // Whether products run on the matrix unit.
    bool on_tiles() const {
#if defined(BL_AMX_BF16)
        return bf16 && d % (2 * TILE_PAIRS) == 0 && amx_ready();
#else
        return false;
#endif
    }
    // Keys of a product with values, when there are `count`: those behind hold zeros.
    int padded_keys(int count) const {
        const int step = on_tiles() ? 2 * TILE_PAIRS : LANES;
        return ceil_div(count, step) * step;
    }
    int tree(int row) const { return tree_lens ? tree_lens[row] : 0; }
    // Tokens of the step that come before the row's candidates.
    int plain(int row) const { return extend_lens[row] - tree(row); }
    // Tokens of the step that are no part of a tree. Its last plain token is: it sees what all
    // candidates see, and is one with an empty path.
    int causal(int row) const { return tree(row) ? std::max(0, plain(row) - 1) : plain(row); }
    // Number of leading keys that some query before `last` of the row may see; of candidates, the
    // keys that all of them see.
    int reach(int row, int last) const {
        return seq_lens[row] - extend_lens[row] + std::min(last, plain(row));
    }
    int words(int row) const { return (tree(row) + 63) / 64; }
    // Which candidates of the row its token x sees; null = none.
    const uint64_t* path(int row, int x) const {
        const int64_t candidate = x - plain(row);
        return candidate < 0 ? nullptr : tree_words + tree_offsets[row] + candidate * words(row);
    }
    // Whether candidate y of the row is on the path of its token x, which may be x itself.
    bool on_path(int row, int x, int y) const {
        const uint64_t* seen = path(row, x);
        return seen && seen[y / 64] >> (y % 64) & 1;
    }
    // Whether what token y sees is what comes first on the path of x.
    bool begins(int row, int x, int y) const {
        const uint64_t *longer = path(row, x), *seen = path(row, y);
        int w = seen ? words(row) - 1 : -1;
        while (w >= 0 && !seen[w]) --w;
        if (w < 0) return true;
        if (!longer || (seen[w] ^ longer[w]) & ~uint64_t(0) >> __builtin_clzll(seen[w])) return false;
        return !memcmp(seen, longer, sizeof(uint64_t) * w);
    }
    // Whether a tree and what the blocks of keys leave of its prefix are one block more.
    bool one_block(int row) const {
        return reach(row, plain(row)) % KEYS + tree(row) <= KEYS;
    }
    const int32_t* slots(int row) const { return slot_table + int64_t(rows[row]) * ctx; }
    // Few query rows read values where they lie; for more, a copy in order pays.
    bool values_in_place(int query_rows) const {
        return !bf16 && d % LANES == 0 && query_rows <= 4 * MAX_STRIP;
    }
    size_t partial_floats() const { return size_t(tile_rows()) * (d + 2); }
};

constexpr int MATES = 8;  // rows of a trunk in one tile: enough to pay for its keys, few enough
                          // that the threads share the work

// Blocks of keys at the start of two rows of one token each that are the same slots.
static int trunk_blocks(const Attention& a, int row, int other) {
    const int most = std::min(a.seq_lens[row], a.seq_lens[other]) / KEYS;
    const int32_t *x = a.slots(row), *y = a.slots(other);
    int blocks = 0;
    while (blocks < most && !memcmp(x + blocks * KEYS, y + blocks * KEYS, KEYS * sizeof(int32_t)))
        ++blocks;
    return blocks;
}

// Rows from `row` on that share a trunk with it; sets its blocks. 1 when it has no mates.
static int count_mates(const Attention& a, int rows, int row, int& blocks) {
    auto lone = [&](int r) { return a.extend_lens[r] == 1 && a.tree(r) == 0; };
    int count = 1;
    blocks = a.seq_lens[row] / KEYS;
    while (count < MATES && row + count < rows && lone(row) && lone(row + count)) {
        const int same = trunk_blocks(a, row, row + count);
        if (same == 0 || 2 * same < blocks) break;  // a mate must not cost the others their trunk
        blocks = std::min(blocks, same);
        ++count;
    }
    return count;
}

// Units of queries [first, first + count) of one row.
static void plan_tile(Plan& plan, const Attention& a, int r, int first, int count, bool split) {
    const bool tree = first >= a.causal(r);
    const int reach = a.reach(r, first + count);
    const int blocks = tree ? reach / KEYS : ceil_div(reach, KEYS), parts = blocks + tree;
    for (int h = 0; h < a.hkv; ++h) {
        if (!split || parts < 2 || (tree && !a.one_block(r))) {
            plan.units.push_back({r, h, first, count, -1, blocks, 0, 0, 0});
            continue;
        }
        for (int b = 0; b < parts; ++b)
            plan.units.push_back(
                {r, h, first, count, b, blocks, parts, plan.partials, plan.joins_used});
        plan.partials += parts;
        ++plan.joins_used;
    }
}

// Cuts a step's attention into units. Splits by key block only where units are few; rows that
// decode behind the same trunk (branches of a fork, programs with one prompt) read it together.
static void plan_attention(Context& c, const Op& op) {
    Attention a(op);
    Plan& plan = c.plan;
    plan.units.clear();
    plan.partials = plan.joins_used = 0;
    const int tokens = a.tile_tokens(), rows = int(c.dims[1]);
    int64_t whole = 0;
    for (int r = 0; r < rows; ++r) whole += int64_t(ceil_div(a.extend_lens[r], tokens)) * a.hkv;
    const bool split = whole < 4 * c.threads && c.threads > 1;
    for (int r = 0, mates = 1; r < rows; r += mates) {  // chunks are taken from the end:
        mates = 1;                                      // longest rows last
        if (a.extend_lens[r] > 1) continue;
        int blocks = 0;
        if (!split) mates = std::min(count_mates(a, rows, r, blocks), a.tile_tokens());
        if (mates == 1) plan_tile(plan, a, r, 0, a.extend_lens[r], split);
        else
            for (int h = 0; h < a.hkv; ++h)
                plan.units.push_back({r, h, 0, mates, -1, blocks, 0, 0, 0, true});
    }
    for (int r = 0; r < rows; ++r) {
        if (a.extend_lens[r] <= 1) continue;
        for (int first = 0, count = 0; first < a.extend_lens[r]; first += count) {
            const bool tree = first >= a.causal(r);  // no tile holds both kinds of tokens
            count = std::min(tokens, (tree ? a.extend_lens[r] : a.causal(r)) - first);
            plan_tile(plan, a, r, first, count, split);
        }
    }
    if (size_t(plan.joins_used) > plan.join_capacity) {
        plan.join_capacity = size_t(plan.joins_used);
        plan.joins.reset(new std::atomic<int32_t>[plan.join_capacity]);
    }
    for (int j = 0; j < plan.joins_used; ++j) plan.joins[j].store(0, std::memory_order_relaxed);
    c.partials.reserve(a.partial_floats() * sizeof(float) * size_t(plan.partials) + 64);
}

static size_t attention_scratch(const Op& op) {
    Attention a(op);
    const size_t rows = size_t(a.tile_rows()) + LANES, wide = size_t(a.padded());
    const size_t tiles = 2 * size_t(KEYS) * wide, scores = rows * (KEYS + KEYS / 2);
    return sizeof(float) * (rows * wide * 2 + scores + tiles + rows * 5) + 4096;
}

}  // namespace bl

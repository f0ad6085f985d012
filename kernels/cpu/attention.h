// Paged attention: tiles of queries of one row against blocks of KEYS keys of one KV head.
//
// Per query the keys are cut into blocks by absolute position. In each block: scores in powers of
// two (a chain of multiply-adds over the head size), block maximum m, p = 2^(score - m), block sum
// l, o = p V (a chain over the keys in order). Blocks are folded in order into the running
// (m, l, o), as in online softmax (Milakov and Gimelshein, 2018). A hidden key adds an exact zero
// and a block without a visible key folds with factors exactly 1 and 0, so a query's result depends
// neither on the tile it is in, nor on the chunk, nor on whether the blocks ran as one unit or
// several. A candidate of a draft tree takes the keys of its path in order, right behind the prefix.
//
// One thread, Sapphire Rapids, 9 and 3 heads of 64, one layer: 1024 new tokens 12.8 ms (94 GFLOP/s
// of 215); one token over 1024 float32 keys 0.09 ms in cache, 0.12 ms from memory (bfloat16 0.09).
#pragma once
#include "attention_tiles.h"
#include "transpose.h"

namespace bl {

// Scratch of one worker for one unit.
struct Tile {
    float *q, *keys, *values, *scores, *state, *m, *l, *alpha, *beta;
    int32_t* pairs;
    int tile_rows;  // of the matrix unit
    Tile(const Attention& a, const Unit& u, Buffer& buffer) : tile_rows(row_tile(u.count * a.group())) {
        const size_t rows = size_t(a.tile_rows()) + LANES, wide = size_t(a.padded());
        float* p = buffer.get<float>();
        keys = p; p += KEYS * wide;
        values = p; p += KEYS * wide;
        q = p; p += rows * wide;
        state = p; p += rows * wide;
        scores = p; p += rows * KEYS;
        pairs = (int32_t*)p; p += rows * KEYS / 2;
        m = p; p += rows;
        l = p; p += rows;
        alpha = p; p += rows;
        beta = p;
    }
    // The tile as one that begins with its query token x.
    Tile from_query(const Attention& a, int x) const {
        Tile t = *this;
        const int64_t row = int64_t(x) * a.group();
        t.q += row * (a.bf16 ? a.d / 2 : a.d);
        t.state += row * a.padded();
        t.scores += row * KEYS;
        t.pairs += row * KEYS / 2;
        t.m += row;
        t.l += row;
        t.alpha += row;
        t.beta += row;
        return t;
    }
};

// Queries of the unit times the scale, [tokens * group][d], float or bfloat16 pairs.
static void load_queries(const Attention& a, const Unit& u, Tile& t) {
    float row[MAX_HEAD];
    const int group = a.group();
    const f32x16 scale = set1(a.scale * 1.44269504088896341f);  // scores count in powers of two
    for (int x = 0; x < u.count; ++x) {
        const int64_t token = a.extend_start[u.row] + u.first + x;
        for (int g = 0; g < group; ++g) {
            const float* from = a.q + (token * a.hq + u.head * group + g) * a.d;
            const int at = x * group + g;
            float* to = a.bf16 ? row : t.q + at * a.d;
            for (int i = 0; i < a.d; i += LANES) {
                const int n = std::min(LANES, a.d - i);
                store_n(to + i, mul(load_n(from + i, n), scale), n);
            }
            if (a.bf16) round_row(row, a.d, (uint16_t*)t.q + at * a.d);
        }
    }
}

// Keys of the slots transposed into panels of 64 keys, zeros after them.
static void load_keys(const Attention& a, const Unit& u, const int32_t* slots, int count, Tile& t) {
    const int words = a.bf16 ? a.d / 2 : a.d;
    const int32_t* k = (const int32_t*)a.k_pool + u.head * words;
    const int32_t* v = (const int32_t*)a.v_pool + u.head * words;
    const int64_t stride = int64_t(a.hkv) * words;
    for (int j = 0; j < count; j += LANES) {
        const int32_t* from[LANES];
        const int n = std::min(LANES, count - j);
        for (int i = 0; i < LANES; ++i) from[i] = i < n ? k + slots[j + i] * stride : ZERO_ROW;
        // The slots are anywhere, so the hardware cannot guess: ask for the rows that come next.
        for (int i = 0; i < n; ++i)
            for (int w = 0; w < words; w += LANES) prefetch(v + slots[j + i] * stride + w);
        for (int i = j + LANES; i < std::min(j + 2 * LANES, count); ++i)
            for (int w = 0; w < words; w += LANES) prefetch(k + slots[i] * stride + w);
        int32_t* to = (int32_t*)t.keys + (j / PANEL) * words * PANEL + j % PANEL;
        for (int w = 0; w < words; w += LANES)
            transpose16(from, w, std::min(LANES, words - w), to + int64_t(w) * PANEL, PANEL);
    }
}

// Values of the slots from `first` on, an even one, in rows, as they are read where not in the pool.
static void load_values(const Attention& a, const Unit& u, const int32_t* slots, int first,
                        int count, Tile& t) {
    const int words = a.bf16 ? a.d / 2 : a.d, wide = a.padded();
    const int32_t* v = (const int32_t*)a.v_pool + u.head * words;
    const int64_t stride = int64_t(a.hkv) * words;
    if (a.bf16) {
        int32_t* to = (int32_t*)t.values;
        int j = first;
        for (; j < count; j += 2)
            interleave(v + slots[j] * stride, j + 1 < count ? v + slots[j + 1] * stride : nullptr,
                       a.d, to + int64_t(j / 2) * wide);
        if (a.on_tiles())
            std::fill(to + int64_t(j / 2) * wide, to + int64_t(a.padded_keys(count) / 2) * wide, 0);
    } else {
        for (int j = first; j < count; ++j)
            memcpy(t.values + int64_t(j) * wide, v + slots[j] * stride, sizeof(float) * a.d);
    }
}

// Writes -inf over the scores of keys that come after the query `x` of the tile.
static void hide_keys(const Attention& a, const Unit& u, int x, int first, int padded, float* s) {
    const int visible = a.reach(u.row, u.first + x + 1);
    for (int j = std::max(0, visible - first); j < padded; ++j) s[j] = MINUS_INF;
}

// The same over the scores from `count` on.
static void hide_from(int count, int padded, float* s) {
    for (int j = count; j < padded; ++j) s[j] = MINUS_INF;
}

// Folds block statistics (mc, lc) into (m, l) and leaves the factors of old and new in alpha, beta.
static void fold(int rows, const float* mc, const float* lc, float* m, float* l, float* alpha,
                 float* beta) {
    for (int i = 0; i < rows; i += LANES) {
        const int n = std::min(LANES, rows - i);
        f32x16 old = load_n(m + i, n), fresh = load_n(mc + i, n), top = max(old, fresh);
        f32x16 base = select_lt(top, set1(-3e38f), set1(0.0f), top);
        f32x16 x = exp2(sub(old, base)), y = exp2(sub(fresh, base));
        store_n(alpha + i, x, n);
        store_n(beta + i, y, n);
        store_n(m + i, top, n);
        store_n(l + i, fma(load_n(lc + i, n), y, mul(load_n(l + i, n), x)), n);
    }
}

// scores -> p = 2^(score - max) in place (or as bfloat16 pairs), block maximum and sum.
static void soft_block(const Attention& a, int rows, int padded, Tile& t, float* mc, float* lc) {
    for (int r = 0; r < rows; ++r) {
        float* s = t.scores + r * KEYS;
        f32x16 top = set1(MINUS_INF), sum = set1(0.0f);
        for (int j = 0; j < padded; j += LANES) top = max(top, load(s + j));
        mc[r] = reduce_max(top);
        const f32x16 base = set1(mc[r] == MINUS_INF ? 0.0f : mc[r]);
        for (int j = 0; j < padded; j += LANES) {
            f32x16 p = exp2(sub(load(s + j), base));
            store(s + j, p);
            sum = add(sum, p);
        }
        lc[r] = reduce_add(sum);
        if (a.bf16) round_row(s, padded, (uint16_t*)(t.pairs + r * KEYS / 2));
    }
}

// Scores of `count` keys, in the order of their slots, for all queries of the unit.
static void score_block(const Attention& a, const Unit& u, const int32_t* slots, int count,
                        Tile& t) {
    const int rows = u.count * a.group(), padded = (count + LANES - 1) / LANES * LANES;
    load_keys(a, u, slots, count, t);
    Strip s{};
    s.a = t.q;
    s.lda = s.depth = a.bf16 ? a.d / 2 : a.d;
    s.ldb = PANEL;
    s.ldc = KEYS;
    for (int j = 0; j < padded; j += PANEL) {
        s.b = t.keys + (j / PANEL) * s.depth * PANEL;
        s.c = t.scores + j;
        s.width = std::min(PANEL, padded - j);
        if (a.on_tiles()) tile_gemm(rows, t.tile_rows, s);
        else if (a.bf16) panel_gemm<true>(rows, s);
        else panel_gemm<false>(rows, s);
    }
}

// o = alpha o + beta p V for the first rows of the tile, with p of `count` keys and their values.
static void fold_values(const Attention& a, int rows, int count, Tile& t) {
    const int wide = a.padded();
    Strip s{};
    s.a = a.bf16 ? (const void*)t.pairs : (const void*)t.scores;
    s.lda = a.bf16 ? KEYS / 2 : KEYS;
    s.depth = a.on_tiles() ? a.padded_keys(count) / 2 : a.bf16 ? (count + 1) / 2 : count;
    s.ldb = s.ldc = wide;
    s.alpha = t.alpha;
    s.beta = t.beta;
    for (int i = 0; i < a.d; i += PANEL) {
        s.b = t.values + i;
        s.c = t.state + i;
        s.width = std::min(PANEL, a.d - i);
        if (a.on_tiles()) tile_gemm(rows, t.tile_rows, s);
        else if (a.bf16) panel_gemm<true>(rows, s);
        else panel_gemm<false>(rows, s);
    }
}

// Folds scored keys into the tile's (m, l) and o.
static void fold_block(const Attention& a, const Unit& u, const int32_t* slots, int count,
                       Tile& t) {
    const int rows = u.count * a.group();
    float mc[TILE_ROWS + MAX_GROUP], lc[TILE_ROWS + MAX_GROUP];
    soft_block(a, rows, a.padded_keys(count), t, mc, lc);
    fold(rows, mc, lc, t.m, t.l, t.alpha, t.beta);
    if (!a.values_in_place(rows)) {
        load_values(a, u, slots, 0, count, t);
        return fold_values(a, rows, count, t);
    }
    Strip s{};
    s.a = t.scores;
    s.lda = KEYS;
    s.depth = count;
    s.ldb = int64_t(a.hkv) * a.d;
    s.ldc = a.padded();
    s.alpha = t.alpha;
    s.beta = t.beta;
    s.slots = slots;
    for (int i = 0; i < a.d; i += PANEL) {
        s.b = (const float*)a.v_pool + u.head * a.d + i;
        s.c = t.state + i;
        s.width = std::min(PANEL, a.d - i);
        panel_gemm<false, true>(rows, s);
    }
}

// One block of keys for all queries of the unit.
static void attend_block(const Attention& a, const Unit& u, int block, Tile& t) {
    const int first = block * KEYS;
    const int count = std::min(KEYS, a.reach(u.row, u.first + u.count) - first);
    const int padded = a.padded_keys(count);
    const int32_t* slots = a.slots(u.row) + first;
    score_block(a, u, slots, count, t);
    for (int x = 0; x < u.count; ++x)
        for (int g = 0; g < a.group(); ++g)
            hide_keys(a, u, x, first, padded, t.scores + (x * a.group() + g) * KEYS);
    fold_block(a, u, slots, count, t);
}

// The rest of a candidate's keys: what the shared blocks left of the prefix, then its own path, as
// if the path's tokens followed the prefix. A candidate's result is thus bitwise that of its path
// run alone.
static void attend_path(const Attention& a, const Unit& u, int x, Tile& whole) {
    const int base = a.reach(u.row, u.first + 1), tree = a.tree(u.row), group = a.group();
    const int32_t* table = a.slots(u.row);
    Unit one = u;
    one.first = u.first + x;
    one.count = 1;
    Tile t = whole.from_query(a, x);
    int32_t slots[KEYS];
    int next = u.blocks * KEYS, count = 0;
    auto flush = [&] {
        score_block(a, one, slots, count, t);
        for (int g = 0; g < group; ++g) hide_from(count, a.padded_keys(count), t.scores + g * KEYS);
        fold_block(a, one, slots, count, t);
        count = 0;
    };
    for (; next < base; ++next) slots[count++] = table[next];
    for (int y = 0; y < tree; ++y) {
        if (!a.on_path(u.row, u.first + x, y)) continue;
        slots[count++] = table[base + y];
        if (count == KEYS) flush();
    }
    if (count) flush();
}

// Moves the scores of a tile's candidates, made of `rest` keys and the whole tree, together, so that
// the keys of each path follow the prefix. Writes how many each sees; returns the most.
static int gather_paths(const Attention& a, const Unit& u, int rest, Tile& t, int* counts) {
    const int tree = a.tree(u.row), group = a.group();
    int most = 0;
    for (int x = 0; x < u.count; ++x) {
        int count = rest;
        float* scores = t.scores + x * group * KEYS;
        for (int y = 0; y < tree; ++y) {
            if (!a.on_path(u.row, u.first + x, y)) continue;
            for (float* s = scores; s < scores + group * KEYS; s += KEYS) s[count] = s[rest + y];
            ++count;
        }
        counts[x] = count;
        most = std::max(most, count);
    }
    for (int r = 0; r < u.count * group; ++r)
        hide_from(counts[r / group], a.padded_keys(most), t.scores + r * KEYS);
    return most;
}

// The same for all candidates of the unit, if the prefix's rest and the tree are one block of keys.
// Both are scored once. Values are laid out path by path: one that ends in a leaf serves all
// candidates on it, as the keys that one of them does not see come behind its own.
static void attend_paths(const Attention& a, const Unit& u, Tile& whole) {
    const int tree = a.tree(u.row), group = a.group(), from = u.blocks * KEYS;
    const int rest = a.reach(u.row, u.first + 1) - from;
    if (!a.one_block(u.row)) {
        for (int x = 0; x < u.count; ++x) attend_path(a, u, x, whole);
        return;
    }
    const int32_t* table = a.slots(u.row) + from;
    score_block(a, u, table, rest + tree, whole);
    int counts[TILE_ROWS], slots[KEYS];
    const int most = gather_paths(a, u, rest, whole, counts), rows = u.count * group;
    if (!most) return;
    float mc[TILE_ROWS + MAX_GROUP], lc[TILE_ROWS + MAX_GROUP];
    soft_block(a, rows, a.padded_keys(most), whole, mc, lc);
    fold(rows, mc, lc, whole.m, whole.l, whole.alpha, whole.beta);
    std::copy(table, table + rest, slots);
    bool left[TILE_ROWS];
    std::fill(left, left + u.count, true);
    int loaded = 0;  // pairs of values of the prefix stay
    for (int leaf = u.count - 1; leaf >= 0; --leaf) {
        if (!left[leaf]) continue;
        int count = rest;
        for (int y = 0; y < tree; ++y)
            if (a.on_path(u.row, u.first + leaf, y)) slots[count++] = table[rest + y];
        load_values(a, u, slots, loaded, count, whole);
        loaded = rest / 2 * 2;
        const auto mine = [&](int x) {
            return left[x] && a.begins(u.row, u.first + leaf, u.first + x);
        };
        for (int x = 0; x <= leaf; ++x) {
            int run = 0;
            while (x + run <= leaf && mine(x + run)) left[x + run++] = false;
            Tile t = whole.from_query(a, x);
            if (run) fold_values(a, run * group, count, t);
            x += run;
        }
    }
}

// The keys that a row of a trunk has to itself.
static void attend_own(const Attention& a, const Unit& u, int x, Tile& whole) {
    Unit one = u;
    one.row = u.row + x;
    one.count = 1;
    Tile t = whole.from_query(a, x);
    for (int b = u.blocks; b < ceil_div(a.seq_lens[one.row], KEYS); ++b) attend_block(a, one, b, t);
}

static void clear_state(int rows, int wide, Tile& t) {
    std::fill(t.state, t.state + int64_t(rows) * wide, 0.0f);
    std::fill(t.m, t.m + rows, MINUS_INF);
    std::fill(t.l, t.l + rows, 0.0f);
}

static void store_output(const Attention& a, const Unit& u, const Tile& t) {
    const int group = a.group(), wide = a.padded();
    for (int x = 0; x < u.count; ++x) {
        const int64_t token = a.extend_start[u.row] + u.first + x;
        for (int g = 0; g < group; ++g) {
            const int r = x * group + g;
            float* to = a.out + (token * a.hq + u.head * group + g) * a.d;
            const f32x16 inverse = set1(t.l[r] > 0 ? 1.0f / t.l[r] : 0.0f);
            for (int i = 0; i < a.d; i += LANES) {
                const int n = std::min(LANES, a.d - i);
                store_n(to + i, mul(load_n(t.state + r * wide + i, n), inverse), n);
            }
        }
    }
}

// Folds the partial results of a split tile in the order of its keys, as one unit would have.
static void merge_blocks(const Context& c, const Attention& a, const Unit& u, Tile& t) {
    const int rows = u.count * a.group(), wide = a.padded();
    clear_state(rows, wide, t);
    for (int b = 0; b < u.parts; ++b) {
        const float* part = c.partials.get<float>() + size_t(u.partial + b) * a.partial_floats();
        const float *mc = part, *lc = part + a.tile_rows(), *o = part + 2 * a.tile_rows();
        fold(rows, mc, lc, t.m, t.l, t.alpha, t.beta);
        for (int r = 0; r < rows; ++r) {
            for (int i = 0; i < a.d; i += LANES) {
                const int n = std::min(LANES, a.d - i);
                float* state = t.state + r * wide + i;
                f32x16 y = mul(load_n(state, n), set1(t.alpha[r]));
                store_n(state, fma(load_n(o + r * a.d + i, n), set1(t.beta[r]), y), n);
            }
        }
    }
}

static void attention_unit(Context& c, const Op& op, const Unit& u, int worker) {
    Attention a(op);
    Tile t(a, u, *c.workers[worker]);
    const int rows = u.count * a.group(), wide = a.padded();
    AttentionTiles tiles(a.on_tiles(), rows);
    load_queries(a, u, t);
    clear_state(rows, wide, t);
    if (u.block < 0) {
        for (int b = 0; b < u.blocks; ++b) attend_block(a, u, b, t);
        if (u.mates)
            for (int x = 0; x < u.count; ++x) attend_own(a, u, x, t);
        else if (u.first >= a.causal(u.row)) attend_paths(a, u, t);
        return store_output(a, u, t);
    }
    if (u.block < u.blocks) attend_block(a, u, u.block, t);
    else attend_paths(a, u, t);
    float* part = c.partials.get<float>() + size_t(u.partial + u.block) * a.partial_floats();
    memcpy(part, t.m, sizeof(float) * rows);
    memcpy(part + a.tile_rows(), t.l, sizeof(float) * rows);
    for (int r = 0; r < rows; ++r)
        memcpy(part + 2 * a.tile_rows() + r * a.d, t.state + r * wide, sizeof(float) * a.d);
    if (c.plan.joins[u.join].fetch_add(1, std::memory_order_acq_rel) + 1 == u.parts) {
        c.plan.joins[u.join].store(0, std::memory_order_relaxed);  // ready for the next layer
        merge_blocks(c, a, u, t);
        store_output(a, u, t);
    }
}

}  // namespace bl

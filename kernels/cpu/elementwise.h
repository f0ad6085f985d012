// Ops that read and write whole rows: embedding, norms, activation, gathers and logit rows.
// Every row is reduced in one fixed order of 16 lanes, alone.
#pragma once
#include <limits>

#include "dense.h"
#include "quant.h"

namespace bl {

static void rms_row(const float* x, float* residual, const float* w, float* out, int64_t h,
                    float eps) {
    f32x16 sum = set1(0.0f);
    for (int64_t i = 0; i < h; i += LANES) {
        const int n = int(h - i < LANES ? h - i : LANES);
        f32x16 v = load_n(x + i, n);
        if (residual) {
            v = add(load_n(residual + i, n), v);
            store_n(residual + i, v, n);
        }
        sum = fma(v, v, sum);
    }
    const f32x16 scale = set1(1.0f / std::sqrt(reduce_add(sum) / float(h) + eps));
    const float* from = residual ? residual : x;
    for (int64_t i = 0; i < h; i += LANES) {
        const int n = int(h - i < LANES ? h - i : LANES);
        store_n(out + i, mul(mul(load_n(from + i, n), scale), load_n(w + i, n)), n);
    }
}

static void silu_row(const float* x, float* out, int64_t f) {
    for (int64_t i = 0; i < f; i += LANES) {
        const int n = int(f - i < LANES ? f - i : LANES);
        f32x16 gate = load_n(x + i, n), up = load_n(x + f + i, n);
        f32x16 one = set1(1.0f), silu = div(gate, add(one, exp(sub(set1(0.0f), gate))));
        store_n(out + i, mul(silu, up), n);
    }
}

static void add_row(const float* x, const float* y, float* out, int64_t h) {
    for (int64_t i = 0; i < h; i += LANES) {
        const int n = int(h - i < LANES ? h - i : LANES);
        store_n(out + i, add(load_n(x + i, n), load_n(y + i, n)), n);
    }
}

static void embed_row(const Op& op, int64_t id, float* out) {
    if (op.i[0] == F32 || op.i[0] == BF16) panel_row(op.i[0], op.p[1], id, op.i[1], out);
    else dequantize_row(op, id, out);
}

static void mask_row(float* logits, const uint32_t* words, int64_t v) {
    for (int64_t i = 0; i < v; ++i)
        if (!(words[i / 32] >> (i % 32) & 1)) logits[i] = -std::numeric_limits<float>::infinity();
}

static float max_of_row(const float* x, int64_t v) {
    f32x16 top = set1(-std::numeric_limits<float>::infinity());
    int64_t i = 0;
    for (; i + LANES <= v; i += LANES) top = max(top, load(x + i));
    float best = reduce_max(top);
    for (; i < v; ++i) best = x[i] > best ? x[i] : best;
    return best;
}

static int32_t argmax_row(const float* x, int64_t v) {
    const float best = max_of_row(x, v);
    for (int64_t i = 0; i < v; ++i)
        if (x[i] == best) return int32_t(i);
    return 0;  // every logit is NaN
}

// The k largest, largest first, the lowest index first among equals.
static void top_row(const float* x, int64_t v, int k, float* values, int32_t* ids) {
    int held = 0;
    for (int64_t i = 0; i < v; i += LANES) {
        const int n = int(v - i < LANES ? v - i : LANES);
        // most blocks hold nothing that is larger than the smallest kept
        if (held == k && n == LANES && !(reduce_max(load(x + i)) > values[k - 1])) continue;
        for (int64_t j = i; j < i + n; ++j) {
            if (held == k && !(x[j] > values[k - 1])) continue;
            int at = held < k ? held++ : k - 1;
            for (; at > 0 && x[j] > values[at - 1]; --at) {
                values[at] = values[at - 1];
                ids[at] = ids[at - 1];
            }
            values[at] = x[j];
            ids[at] = int32_t(j);
        }
    }
}

static float logsumexp_row(const float* x, int64_t v) {
    const float best = max_of_row(x, v);
    if (best == -std::numeric_limits<float>::infinity()) return best;
    f32x16 sum = set1(0.0f);
    for (int64_t i = 0; i < v; i += LANES) {
        const int n = int(v - i < LANES ? v - i : LANES);
        f32x16 e = exp(sub(load_n(x + i, n), set1(best)));
        if (n == LANES) {
            sum = add(sum, e);
        } else {
            float lanes[LANES] = {};
            store_n(lanes, e, n);
            sum = add(sum, load(lanes));
        }
    }
    return best + std::log(reduce_add(sum));
}

// Token i belongs to the batch row r with extend_start[r] <= i < extend_start[r + 1].
static void resolve_ids(const Op& op, int64_t tokens, int64_t rows) {
    const int32_t* ids = (const int32_t*)op.p[0];
    const int64_t* positions = (const int64_t*)op.p[1];
    const int32_t* table_rows = (const int32_t*)op.p[2];
    const int32_t* start = (const int32_t*)op.p[3];
    const int32_t* table = (const int32_t*)op.p[4];
    int32_t* out = (int32_t*)op.p[5];
    int64_t r = 0;
    for (int64_t i = 0; i < tokens; ++i) {
        while (r + 1 < rows && start[r + 1] <= i) ++r;
        out[i] = ids[i] >= 0 ? ids[i] : table[int64_t(table_rows[r]) * op.i[0] + positions[i]];
    }
}

}  // namespace bl

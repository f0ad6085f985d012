// C interface of the native CPU kernels: runs a list of ops on a pool of threads in one call.
// The Python side (binding.py) mirrors `Op`, the kinds and the operand order; it checks every
// operand before an op gets here, so nothing below validates.
#include <exception>
#include <string>

#include "attention.h"
#include "elementwise.h"
#include "lora.h"
#include "rope.h"

namespace bl {

enum Kind {
    RESOLVE, EMBED, RMS, ADD_RMS, LINEAR, ROPE, ATTENTION, SILU_MUL, ADD, GATHER, BITMASK, ARGMAX,
    LOGSUMEXP, LORA, SCATTER, TOP
};
enum Phase { MAIN = 0, QUANTIZE = 1, ROUND = 2, THEN_QUANTIZE = 4, THEN_ROUND = 8 };

static int32_t width_of(const Op& op) { return op.kind == EMBED ? op.i[1] : op.i[0]; }

// Float operations of a row, roughly.
static int64_t work_of(const Op& op) {
    if (op.kind == LORA) return (int64_t(op.i[0]) + op.i[1] * op.i[3]) * op.i[2] / 8;
    return int64_t(width_of(op)) * (op.kind == ROPE ? 500 : 4);
}

static void row_op(Context& c, const Stage& s, int64_t t) {
    const Op& op = *s.op;
    const int64_t h = width_of(op);
    const float* x = (const float*)op.p[0] + t * h;
    float* out = nullptr;
    switch (op.kind) {
        case EMBED: return embed_row(op, ((const int32_t*)op.p[0])[t], (float*)op.p[2] + t * h);
        case RMS:
            rms_row(x, nullptr, (const float*)op.p[1], out = (float*)op.p[2] + t * h, h, op.f[0]);
            break;
        case ADD_RMS:
            out = (float*)op.p[3] + t * h;
            rms_row(x, (float*)op.p[1] + t * h, (const float*)op.p[2], out, h, op.f[0]);
            break;
        case SILU_MUL:
            silu_row((const float*)op.p[0] + 2 * t * h, out = (float*)op.p[1] + t * h, h);
            break;
        case ADD: return add_row(x, (const float*)op.p[1] + t * h, (float*)op.p[2] + t * h, h);
        case GATHER: {
            const int64_t from = ((const int32_t*)op.p[1])[t];
            memcpy((float*)op.p[2] + t * h, (const float*)op.p[0] + from * h, sizeof(float) * h);
            return;
        }
        case SCATTER: {
            const int64_t to = ((const int32_t*)op.p[1])[t];
            memcpy((float*)op.p[2] + to * h, x, sizeof(float) * h);
            return;
        }
        case ROPE: return rope_token(op, t);
        case BITMASK:
            if (((const uint8_t*)op.p[2])[t])
                mask_row((float*)x, (const uint32_t*)op.p[1] + t * ceil_div(h, 32), h);
            return;
        case ARGMAX: ((int32_t*)op.p[1])[t] = argmax_row(x, h); return;
        case TOP: {
            const int64_t k = op.i[1];
            return top_row(x, h, int(k), (float*)op.p[1] + t * k, (int32_t*)op.p[2] + t * k);
        }
        case LOGSUMEXP: ((float*)op.p[1])[t] = logsumexp_row(x, h); return;
    }
    if (s.phase & THEN_QUANTIZE) quantize_row(out, h, TileRow(t, s.rows, tile_rows(s.rows)), c);
    if (s.phase & THEN_ROUND) round_row(out, h, c.codes.get<uint16_t>() + t * ((h + 1) / 2 * 2));
}

static void run_chunk(Context& c, const Stage& s, uint32_t chunk, int worker) {
    const Op& op = *s.op;
    if (op.kind == RESOLVE) return resolve_ids(op, c.dims[0], c.dims[1]);
    if (op.kind == ATTENTION) return attention_unit(c, op, c.plan.units[chunk], worker);
    if (op.kind == LINEAR && s.phase == MAIN) {
        const bool quantized = op.i[0] == Q4_1 || op.i[0] == Q8_0;
        const int64_t groups = ceil_div(op.i[1], quantized ? LANES : PANEL);
        const int64_t tiles = quantized ? ceil_div(s.rows, tile_rows(s.rows)) : s.rows;
        // Chunks are handed out from the last one; weights are asked for ahead, so start in front.
        const int64_t at = s.chunks - 1 - chunk;
        const int64_t rb = at / s.grain[1], cb = at % s.grain[1];
        const int64_t t0 = tiles * rb / s.grain[0], t1 = tiles * (rb + 1) / s.grain[0];
        const int64_t g0 = groups * cb / s.grain[1], g1 = groups * (cb + 1) / s.grain[1];
        if (quantized) quant_gemm(c, op, s.rows, t0, t1, g0, g1);
        else dense_gemm(c, op, t0, t1, g0, g1);
        return;
    }
    const int64_t row0 = int64_t(s.rows) * chunk / s.chunks;
    const int64_t row1 = int64_t(s.rows) * (chunk + 1) / s.chunks;
    if (op.kind == LORA)
        return op.i[4] == BF16 ? lora_rows<uint16_t>(op, row0, row1) : lora_rows<float>(op, row0, row1);
    for (int64_t t = row0; t < row1; ++t) {
        const int64_t k = op.i[2];
        const float* x = (const float*)op.p[0] + t * k;
        if (s.phase == QUANTIZE) quantize_row(x, k, TileRow(t, s.rows, tile_rows(s.rows)), c);
        else if (s.phase == ROUND) round_row(x, k, c.codes.get<uint16_t>() + t * ((k + 1) / 2 * 2));
        else row_op(c, s, t);
    }
}

// The activations that a linear needs before its own stage.
static int input_phase(const Op& op) {
    return op.i[0] == F32 ? MAIN : op.i[0] == BF16 ? ROUND : QUANTIZE;
}

class Runner {
  public:
    explicit Runner(int threads) : pool_(threads, &run_chunk, context_) {
        context_.threads = threads;
        for (int w = 0; w < threads; ++w) context_.workers.emplace_back(new Buffer());
    }

    void run(const Op* ops, int count, const int64_t* dims) {
        std::lock_guard<std::mutex> lock(mutex_);
        for (int i = 0; i < 3; ++i) context_.dims[i] = dims[i];
        stages_.clear();
        for (int i = 0; i < count; ++i) add(ops[i], i + 1 < count ? &ops[i + 1] : nullptr);
        pool_.run(stages_);
        context_.plan.key = nullptr;
        prepared_ = false;
    }

  private:
    int32_t rows(const Op& op) const { return int32_t(context_.dims[op.dim]); }

    void push(const Op& op, int phase, int32_t row_count, int64_t work_per_row) {
        Stage s{&op, phase, row_count, 0, {1, 1, 1}};
        const int64_t work = row_count * work_per_row;
        const int64_t parts = std::min<int64_t>(4 * context_.threads, work / 4096 + 1);
        s.chunks = uint32_t(std::min<int64_t>(row_count, context_.threads > 1 ? parts : 1));
        if (op.kind == LORA)  // neighbours of one slot stay together
            s.chunks = std::min(s.chunks, uint32_t(std::max(context_.threads, row_count / TOGETHER)));
        stages_.push_back(s);
    }

    void add(const Op& op, const Op* next) {
        if (op.kind == ATTENTION) return add_attention(op);
        if (op.kind == LINEAR) return add_linear(op);
        int phase = MAIN;
        const void* out = op.kind == RMS        ? op.p[2]
                          : op.kind == ADD_RMS  ? op.p[3]
                          : op.kind == SILU_MUL ? op.p[1]
                                                : nullptr;
        if (out && next && next->kind == LINEAR && next->p[0] == out && next->dim == op.dim) {
            const int input = input_phase(*next);
            if (input != MAIN) {
                reserve_input(*next);
                phase = input == QUANTIZE ? THEN_QUANTIZE : THEN_ROUND;
                prepared_ = true;
            }
        }
        push(op, phase, op.kind == RESOLVE ? 1 : rows(op), work_of(op));
    }

    void reserve_input(const Op& op) {
        const size_t m = size_t(rows(op)), k = size_t(op.i[2]);
        if (op.i[0] == BF16) {
            context_.codes.reserve(m * (k + 1) * 2);
            return;
        }
        context_.codes.reserve((m + PAIR_ROWS) * k);  // pairs of blocks take twice the room
        context_.scales.reserve(m * (k / BLOCK) * 4);
        context_.sums.reserve(m * (k / BLOCK) * 4);
        context_.offsets.reserve(m * (k / BLOCK) * 4);
    }

    void add_linear(const Op& op) {
        const int32_t m = rows(op);
        if (!m) return;
        reserve_input(op);
        if (!prepared_ && input_phase(op) != MAIN) push(op, input_phase(op), m, op.i[2] * 4);
        prepared_ = false;
        const bool quantized = op.i[0] == Q4_1 || op.i[0] == Q8_0;
        const int64_t groups = ceil_div(op.i[1], quantized ? LANES : PANEL);
        // Rows in blocks that stay in the second-level cache; columns so that threads end together.
        const int64_t block = std::max<int64_t>(48, 400000 / op.i[2] / 16 * 16);
        const int64_t row_blocks = ceil_div(m, block);
        const int64_t want = context_.threads > 1 ? 6 * context_.threads : 1;
        const int64_t per_block = std::max<int64_t>(1, ceil_div(want, row_blocks));
        const int64_t column_blocks = std::min(groups, per_block);
        Stage s{&op, MAIN, m, uint32_t(row_blocks * column_blocks),
                {int32_t(row_blocks), int32_t(column_blocks), 1}};
        stages_.push_back(s);
    }

    void add_attention(const Op& op) {
        if (!rows(op) || !context_.dims[1]) return;
        if (context_.plan.key != op.p[5]) {
            plan_attention(context_, op);
            context_.plan.key = op.p[5];
        }
        for (auto& w : context_.workers) w->reserve(attention_scratch(op));
        const uint32_t units = uint32_t(context_.plan.units.size());
        stages_.push_back(Stage{&op, MAIN, rows(op), units, {1, 1, 1}});
    }

    Context context_;
    std::vector<Stage> stages_;
    bool prepared_ = false;
    std::mutex mutex_;
    Pool<Context> pool_;
};

}  // namespace bl

#define BL_EXPORT __attribute__((visibility("default")))

extern "C" {

BL_EXPORT int bl_abi() { return int(sizeof(bl::Op)); }

BL_EXPORT const char* bl_isa() {
#if defined(BL_AMX) && defined(BL_BF16)
    return bl::amx_ready() ? "avx512-vnni-bf16-amx" : "avx512-vnni-bf16";
#elif defined(BL_VNNI) && defined(BL_BF16)
    return "avx512-vnni-bf16";
#elif defined(BL_VNNI)
    return "avx512-vnni";
#elif defined(BL_AVX512)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#else
    return "generic";
#endif
}

BL_EXPORT void* bl_open(int threads) {
    try {
        return new bl::Runner(threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

BL_EXPORT void bl_close(void* runner) { delete static_cast<bl::Runner*>(runner); }

// Runs ops in order with the live sizes dims = {tokens, rows, logit rows}; 0, or 1 without memory.
BL_EXPORT int bl_run(void* runner, const bl::Op* ops, int count, const int64_t* dims) {
    try {
        static_cast<bl::Runner*>(runner)->run(ops, count, dims);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}
}

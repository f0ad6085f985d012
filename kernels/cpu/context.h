// What the stages of one run share: live sizes, scratch for quantized activations, the attention
// plan, and scratch of each worker. Grown between runs only, never inside a stage.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>

#include "pool.h"

namespace bl {

// 64-byte aligned bytes that keep their size until asked for more.
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }
    void* reserve(size_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = (bytes + 4095) / 4096 * 4096;
            data_ = std::aligned_alloc(64, size_);
            if (!data_) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return data_;
    }
    template <class T>
    T* get() const { return static_cast<T*>(data_); }

  private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

// One tile of attention work: queries [first, first + count) of a row, one KV head, and either all
// keys (block < 0) or one of the tile's parts, whose partial result is merged by the last to finish:
// a block of keys, or behind them what the candidates of a tree do not share.
// With mates, the queries are those of `count` rows of one token each, from `row` on, whose first
// `blocks` blocks of keys are the same slots; the rest of its keys each row has to itself.
struct Unit {
    int32_t row, head, first, count, block, blocks, parts, partial, join;
    bool mates = false;
};

struct Plan {
    const void* key = nullptr;
    std::vector<Unit> units;
    std::unique_ptr<std::atomic<int32_t>[]> joins;
    size_t join_capacity = 0;
    int partials = 0, joins_used = 0;
};

struct Context {
    int64_t dims[3] = {0, 0, 0};  // live tokens, rows, logit rows
    int threads = 1;
    Buffer codes, scales, sums, offsets;  // int8 [r, K], float and float and int32 [r, K / 32]
    Buffer partials;
    std::vector<std::unique_ptr<Buffer>> workers;
    Plan plan;
};

BL_INLINE int32_t ceil_div(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

}  // namespace bl

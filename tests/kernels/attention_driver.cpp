// Runs the attention kernel on random steps, every array in memory of its exact size, for the sanitizers to watch.
// Slots and tables past the sequences' lengths hold what would show: NaN, or a scale that is, and blocks that do not
// exist.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attention.h"
#include "driver.h"
#include "instruction_set.h"
#include "row_threads.h"

namespace {

using nanovllm::BFloat16;
using nanovllm::PagedAttention;
using nanovllm::PoolType;

struct Random {
  std::mt19937& engine;
  std::int64_t below(std::int64_t end) { return std::uniform_int_distribution<std::int64_t>(0, end - 1)(engine); }
  std::int64_t one_of(std::initializer_list<std::int64_t> values) { return values.begin()[below(values.size())]; }
  float feature() { return std::normal_distribution<float>()(engine); }
  Array<float> features(std::int64_t count) {
    Array<float> result(new float[count]);
    for (std::int64_t i = 0; i < count; ++i) result[i] = feature();
    return result;
  }
};

// One pool, of which the array of its type and, for integers, the scales exist.
struct Pool {
  Array<float> floats, scales;
  Array<BFloat16> halves;
  Array<std::int8_t> integers;

  void* features() const {
    if (floats) return floats.get();
    return halves ? static_cast<void*>(halves.get()) : static_cast<void*>(integers.get());
  }
};

struct Step {
  PagedAttention call = {};
  Array<float> query, key, value, cos, sin, output;
  Pool key_pool, value_pool;
  Array<std::int32_t> query_start, context_lens, block_tables, slot_mapping;
  Array<std::int64_t> positions;
};

void choose_sizes(PagedAttention& call, Random& random) {
  call.num_seqs = 1 + random.below(5);
  call.block_size = random.one_of({1, 4, 16, 32});
  call.num_kv_heads = 1 + random.below(3);
  call.num_heads = call.num_kv_heads * (1 + random.below(9));
  call.head_size = random.one_of({2, 7, 16, 33, 64, 80, 96, 128, 256});
  call.rotary_dim = 2 * (1 + random.below(call.head_size / 2));
  call.rotary_interleaved = random.below(2) == 1;
  call.window = random.one_of({0, 0, 1, 5, 130, 600});
  call.softcap = static_cast<float>(random.one_of({0, 0, 30}));
  call.scale = 0.3f;
  call.pool_type = static_cast<PoolType>(random.below(3));
}

// Which heads of a pool, counted through all of it, belong to a token of some context.
std::vector<bool> filled_heads(const Step& step) {
  const PagedAttention& call = step.call;
  const std::int64_t size = call.block_size * call.num_kv_heads;
  std::vector<bool> filled(call.num_blocks * size);
  for (std::int64_t s = 0; s < call.num_seqs; ++s) {
    for (std::int64_t i = 0; i < step.context_lens[s] * call.num_kv_heads; ++i) {
      filled[step.block_tables[s * call.max_blocks + i / size] * size + i % size] = true;
    }
  }
  return filled;
}

Pool random_pool(const Step& step, Random& random) {
  const std::int64_t size = step.call.head_size;
  const std::vector<bool> filled = filled_heads(step);
  const std::int64_t heads = static_cast<std::int64_t>(filled.size());
  const auto feature = [&](std::int64_t i) {
    return filled[i / size] ? random.feature() : std::numeric_limits<float>::quiet_NaN();
  };
  Pool pool;
  if (step.call.pool_type == PoolType::float32) {
    pool.floats.reset(new float[heads * size]);
    for (std::int64_t i = 0; i < heads * size; ++i) pool.floats[i] = feature(i);
  } else if (step.call.pool_type == PoolType::bfloat16) {
    pool.halves.reset(new BFloat16[heads * size]);
    for (std::int64_t i = 0; i < heads * size; ++i) {
      const float value = feature(i);
      std::memcpy(&pool.halves[i], reinterpret_cast<const char*>(&value) + 2, 2);
    }
  } else {
    pool.integers.reset(new std::int8_t[heads * size]);
    pool.scales.reset(new float[heads]);
    for (std::int64_t i = 0; i < heads * size; ++i) pool.integers[i] = static_cast<std::int8_t>(random.below(255) - 127);
    for (std::int64_t i = 0; i < heads; ++i) pool.scales[i] = feature(i * size) * 0.01f;
  }
  return pool;
}

// The sequences' lengths, and scattered blocks for them.
void lay_out(Step& step, Random& random) {
  PagedAttention& call = step.call;
  step.query_start.reset(new std::int32_t[call.num_seqs + 1]{});
  step.context_lens.reset(new std::int32_t[call.num_seqs]);
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < call.num_seqs; ++s) {
    const std::int64_t queries = random.below(2) == 0 ? 1 : random.below(60);
    step.context_lens[s] = static_cast<std::int32_t>(random.below(700));
    step.query_start[s + 1] = static_cast<std::int32_t>(step.query_start[s] + queries);
    longest = std::max(longest, step.context_lens[s] + queries);
  }
  call.num_tokens = step.query_start[call.num_seqs];
  call.max_blocks = (longest + call.block_size - 1) / call.block_size;
  call.num_blocks = call.num_seqs * call.max_blocks;
  std::vector<std::int32_t> blocks(call.num_blocks);
  for (std::int64_t i = 0; i < call.num_blocks; ++i) blocks[i] = static_cast<std::int32_t>(i);
  std::shuffle(blocks.begin(), blocks.end(), random.engine);
  step.block_tables.reset(new std::int32_t[call.num_blocks]);
  for (std::int64_t s = 0; s < call.num_seqs; ++s) {
    const std::int64_t length = step.context_lens[s] + step.query_start[s + 1] - step.query_start[s];
    for (std::int64_t i = 0; i < call.max_blocks; ++i) {
      const std::int64_t place = s * call.max_blocks + i;
      step.block_tables[place] = i * call.block_size < length ? blocks[place] : 1 << 30;
    }
  }
}

void place_tokens(Step& step) {
  const PagedAttention& call = step.call;
  step.slot_mapping.reset(new std::int32_t[call.num_tokens]);
  step.positions.reset(new std::int64_t[call.num_tokens]);
  for (std::int64_t s = 0; s < call.num_seqs; ++s) {
    for (std::int64_t token = step.query_start[s]; token < step.query_start[s + 1]; ++token) {
      const std::int64_t place = step.context_lens[s] + token - step.query_start[s];
      const std::int64_t block = step.block_tables[s * call.max_blocks + place / call.block_size];
      step.positions[token] = place;
      step.slot_mapping[token] = static_cast<std::int32_t>(block * call.block_size + place % call.block_size);
    }
  }
}

Step random_step(Random& random) {
  Step step;
  PagedAttention& call = step.call;
  choose_sizes(call, random);
  lay_out(step, random);
  place_tokens(step);
  call.max_positions = 760;
  step.key_pool = random_pool(step, random);
  step.value_pool = random_pool(step, random);
  step.query = random.features(call.num_tokens * call.num_heads * call.head_size);
  step.key = random.features(call.num_tokens * slot_size(call));
  step.value = random.features(call.num_tokens * slot_size(call));
  step.cos = random.features(call.max_positions * call.rotary_dim / 2);
  step.sin = random.features(call.max_positions * call.rotary_dim / 2);
  step.output.reset(new float[call.num_tokens * call.num_heads * call.head_size]);
  call.query = step.query.get(), call.key = step.key.get(), call.value = step.value.get();
  call.key_cache = step.key_pool.features(), call.value_cache = step.value_pool.features();
  call.key_scale = step.key_pool.scales.get(), call.value_scale = step.value_pool.scales.get();
  call.query_start = step.query_start.get(), call.context_lens = step.context_lens.get();
  call.block_tables = step.block_tables.get(), call.slot_mapping = step.slot_mapping.get();
  call.positions = step.positions.get(), call.cos = step.cos.get(), call.sin = step.sin.get();
  call.output = step.output.get();
  return step;
}

std::string problem_of(const Step& step) {
  const PagedAttention& call = step.call;
  const std::string problem = attention_problem(call);
  if (!problem.empty()) return problem;
  const std::int64_t count = call.num_tokens * call.num_heads * call.head_size;
  std::vector<float> expected;
  for (const std::size_t threads : {1, 3}) {
    std::fill_n(call.output, count, std::numeric_limits<float>::quiet_NaN());
    paged_attention(call, nanovllm::SpawnedThreads(threads));
    for (std::int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(call.output[i])) return "a result is not finite";
      if (threads > 1 && call.output[i] != expected[i]) return "threads change bits";
    }
    expected.assign(call.output, call.output + count);
  }
  return "";
}

}  // namespace

std::string call_attention(std::mt19937& engine, int) {
  Random random{engine};
  return problem_of(random_step(random));
}

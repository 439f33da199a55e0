// Calls the greedy head on random tables with memory of exactly the size that it may touch; for sanitizers.

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "driver.h"
#include "greedy_head.h"
#include "instruction_set.h"
#include "quantized_linear.h"
#include "row_threads.h"

namespace {

// A table whose numbers are multiples of 16, which 4 bits hold, and its sketch.
struct Random {
  std::vector<std::int8_t> weight;
  std::vector<std::uint8_t> sketch;
  std::vector<float> scale, sketch_scale, sketch_step;

  Random(std::mt19937& random, std::size_t num_out, std::size_t num_in)
      : weight(num_out * num_in),
        sketch(num_out * ((num_in + 127) / 128) * 64, 0x88),
        scale(num_out),
        sketch_scale(num_out * ((num_in + 127) / 128)),
        sketch_step(num_out) {
    const std::size_t blocks = (num_in + 127) / 128;
    for (std::size_t n = 0; n < num_out; ++n) {
      scale[n] = 1.0f / static_cast<float>(1 + random() % 4);
      sketch_step[n] = 16 * scale[n];
      std::fill_n(&sketch_scale[n * blocks], blocks, sketch_step[n]);
      for (std::size_t k = 0; k < num_in; ++k) {
        const int nibble = static_cast<int>(random() % 15) - 7;
        weight[n * num_in + k] = static_cast<std::int8_t>(16 * nibble);
        std::uint8_t& pair = sketch[(n * blocks + k / 128) * 64 + k % 128 / 2];
        pair = static_cast<std::uint8_t>(k % 2 == 0 ? (pair & 0xf0) | (nibble + 8) : (pair & 15) | (nibble + 8) << 4);
      }
    }
  }
};

// Whether the ids are those of the logits, with the sketch and without.
bool agrees(std::mt19937& random, std::int64_t num_rows, std::int64_t num_in, std::int64_t num_out) {
  const Random table(random, static_cast<std::size_t>(num_out), static_cast<std::size_t>(num_in));
  std::vector<float> x(num_rows * num_in), logits(num_rows * num_out);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000 - 1;
  const nanovllm::SpawnedThreads threads(2);
  const std::vector<std::int32_t> sums = nanovllm::weight_row_sums(table.weight.data(), num_out, num_in, threads);
  nanovllm::quantized_linear({{x.data()}, num_rows, num_in, table.weight.data(), table.scale.data(), sums.data(),
                              num_out, logits.data()},
                             threads);
  for (const std::uint8_t* sketch : {table.sketch.data(), static_cast<const std::uint8_t*>(nullptr)}) {
    std::vector<std::int64_t> ids(num_rows);
    nanovllm::greedy_head(x.data(), num_rows,
                          {table.weight.data(), table.scale.data(), sketch, table.sketch_scale.data(),
                           table.sketch_step.data(), num_out, num_in},
                          [&](const nanovllm::UseRowSums& use) { use(sums.data()); }, ids.data(), threads);
    for (std::int64_t t = 0; t < num_rows; ++t) {
      const float* row = logits.data() + t * num_out;
      if (ids[t] != std::max_element(row, row + num_out) - row) return false;
    }
  }
  return true;
}

}  // namespace

std::string call_greedy_head(std::mt19937& random, int i) {
  const std::int64_t num_rows = 1 + random() % (i % 5 == 0 ? 60 : 5), num_in = 1 + random() % 300;
  const std::int64_t num_out = 1 + random() % (i % 4 == 0 ? 2500 : 150);
  return agrees(random, num_rows, num_in, num_out) ? "" : "wrong";
}

// Calls a kernel on random arrays, with each instruction set of this processor; for sanitizers.
//
//     driver KERNEL NUM_CALLS        prints "set S: NUM_CALLS calls" for each set

#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <map>

#include "instruction_set.h"

namespace {

const std::map<std::string, std::string (*)(std::mt19937&, int)> kKernels{
    {"attention", call_attention},
    {"block_linear", call_block_linear},
    {"gated_silu", call_gated_silu},
    {"greedy_head", call_greedy_head},
    {"quantized_linear", call_quantized_linear},
    {"sampler", call_sampler},
};

}  // namespace

int main(int, char** arguments) {
  const auto call = kKernels.at(arguments[1]);
  const int num_calls = std::atoi(arguments[2]);
  for (int set = 0; nanovllm::force_instruction_set(static_cast<nanovllm::InstructionSet>(set)); ++set) {
    std::mt19937 random(1);
    for (int i = 0; i < num_calls; ++i) {
      const std::string problem = call(random, i);
      if (!problem.empty()) return std::printf("set %d, call %d: %s\n", set, i, problem.c_str()), 1;
    }
    std::printf("set %d: %d calls\n", set, num_calls);
  }
}

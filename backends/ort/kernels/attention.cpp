#include "attention.h"

#include <algorithm>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "attention_tile.h"
#include "attention_write.h"
#include "instruction_set.h"

namespace nanovllm {
namespace {

constexpr std::int64_t kTileRows = 64;         // queries x heads that share a tile's columns of keys
constexpr std::size_t kTasksPerThread = 8;     // below it, tiles are cut further so that all threads have work
constexpr std::int64_t kMaxPartialFloats = 1 << 22;
constexpr std::int64_t kFeaturesPerTask = 16384;  // of keys to be written

// The host does not say how many threads it runs; this is enough for those that there can be.
std::size_t enough_tasks() {
  static const std::size_t processors = std::thread::hardware_concurrency();
  return processors == 0 ? 64 : std::min<std::size_t>(kTasksPerThread * processors, 64);
}

// Runs body(i) for every i below count on the host's threads.
template <typename Body>
void run(const Parallel& parallel, std::size_t count, const Body& body) {
  if (count == 1) return body(0);
  const auto task = [](void* data, std::size_t index) { (*static_cast<const Body*>(data))(index); };
  parallel.run(count, task, const_cast<Body*>(&body));
}

AttentionKernel kernel([[maybe_unused]] const PagedAttention& call) {
#if defined(__x86_64__)
  const bool integers = call.pool_type == PoolType::int8 && __builtin_cpu_supports("avx512vnni");
  if (instruction_set() == InstructionSet::avx512 && integers) return attention_kernel_avx512vnni();
  if (instruction_set() == InstructionSet::avx512) return attention_kernel_avx512();
  if (instruction_set() == InstructionSet::avx2) return attention_kernel_avx2();
#endif
  return attention_kernel_scalar();
}

// Memory of this thread, kept from task to task; its content is undefined.
float* scratch(std::int64_t floats) {
  struct Free {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
  };
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local std::int64_t size = 0;
  if (size < floats) {
    memory.reset(static_cast<float*>(::operator new[](static_cast<std::size_t>(floats) * sizeof(float),
                                                      std::align_val_t(64))));
    size = floats;
  }
  return memory.get();
}

void write_cache(const PagedAttention& call, const Parallel& parallel) {
  const std::int64_t per_task = std::max<std::int64_t>(kFeaturesPerTask / slot_size(call), 1);
  run(parallel, static_cast<std::size_t>((call.num_tokens + per_task - 1) / per_task), [&](std::size_t task) {
    const std::int64_t first = static_cast<std::int64_t>(task) * per_task;
    nanovllm::write_cache(call, first, std::min(first + per_task, call.num_tokens), scratch(call.head_size));
  });
}

std::int64_t cost(const AttentionTile& tile) { return tile.num_queries * tile.num_kv_heads * tile.num_splits; }

// Some queries of a sequence, over all their splits.
AttentionTile tile_of(const PagedAttention& call, std::int64_t sequence, std::int64_t first, std::int64_t queries) {
  const std::int64_t start = call.query_start[sequence];
  const std::int64_t place = call.context_lens[sequence] + first - start;
  const std::int64_t oldest = call.window > 0 ? std::max<std::int64_t>(place - call.window + 1, 0) : 0;
  const std::int64_t split = oldest / kSplit;
  const std::int64_t splits = (place + queries - 1) / kSplit - split + 1;
  return {sequence, first, queries, place, 0, call.num_kv_heads, split, splits};
}

std::vector<AttentionTile> tiles_of(const PagedAttention& call) {
  const std::int64_t most = std::max<std::int64_t>(kTileRows / group_size(call), 1);
  std::vector<AttentionTile> tiles;
  for (std::int64_t sequence = 0; sequence < call.num_seqs; ++sequence) {
    const std::int64_t end = call.query_start[sequence + 1];
    for (std::int64_t first = call.query_start[sequence]; first < end; first += most) {
      tiles.push_back(tile_of(call, sequence, first, std::min(most, end - first)));
    }
  }
  return tiles;
}

std::vector<AttentionTile> apart(const std::vector<AttentionTile>& tiles, std::int64_t num_kv_heads) {
  std::vector<AttentionTile> result;
  for (AttentionTile tile : tiles) {
    tile.num_kv_heads = 1;
    for (tile.first_kv_head = 0; tile.first_kv_head < num_kv_heads; ++tile.first_kv_head) result.push_back(tile);
  }
  return result;
}

void attend_tiles(const PagedAttention& call, const Parallel& parallel, const std::vector<AttentionTile>& tiles) {
  const AttentionKernel isa = kernel(call);
  run(parallel, tiles.size(), [&](std::size_t i) {
    isa.attend(call, tiles[i], scratch(isa.scratch_floats(call, tiles[i])), nullptr);
  });
}

std::int64_t partial_floats(const PagedAttention& call, const AttentionTile& tile) {  // of one split
  return tile.num_kv_heads * states_floats(call, rows_per_head(call, tile));
}

// Each split of a tile is a task of its own. The states of a tile lie together: see AttentionKernel.
void attend_splits(const PagedAttention& call, const Parallel& parallel, const std::vector<AttentionTile>& tiles) {
  struct Piece {
    AttentionTile tile;
    std::int64_t place;
  };
  const AttentionKernel isa = kernel(call);
  std::vector<Piece> pieces;
  std::vector<std::int64_t> places;
  std::int64_t floats = 0;
  for (const AttentionTile& tile : tiles) {
    places.push_back(floats);
    for (std::int64_t split = 0; split < tile.num_splits; ++split, floats += partial_floats(call, tile)) {
      pieces.push_back({tile, floats});
      pieces.back().tile.first_split += split;
      pieces.back().tile.num_splits = 1;
    }
  }
  const std::unique_ptr<float[]> partials(new float[static_cast<std::size_t>(floats)]);
  run(parallel, pieces.size(), [&](std::size_t i) {
    const AttentionTile& tile = pieces[i].tile;
    isa.attend(call, tile, scratch(isa.scratch_floats(call, tile)), partials.get() + pieces[i].place);
  });
  run(parallel, tiles.size(), [&](std::size_t i) { isa.join(call, tiles[i], partials.get() + places[i]); });
}

}  // namespace

void paged_attention(const PagedAttention& call, const Parallel& parallel) {
  if (call.num_tokens == 0) return;
  write_cache(call, parallel);
  std::vector<AttentionTile> tiles = tiles_of(call);
  const std::size_t enough = enough_tasks();
  if (tiles.size() < enough) tiles = apart(tiles, call.num_kv_heads);
  std::int64_t floats = 0;
  for (const AttentionTile& tile : tiles) floats += tile.num_splits * partial_floats(call, tile);
  const bool split = std::any_of(tiles.begin(), tiles.end(), [](const auto& tile) { return tile.num_splits > 1; });
  if (split && tiles.size() < enough && floats <= kMaxPartialFloats) return attend_splits(call, parallel, tiles);
  std::stable_sort(tiles.begin(), tiles.end(), [](const auto& a, const auto& b) { return cost(a) > cost(b); });
  attend_tiles(call, parallel, tiles);
}

std::string attention_problem(const PagedAttention& call) {
  const auto outside = [](const char* what, std::int64_t value, const char* limit, std::int64_t end) {
    return std::string(what) + " is " + std::to_string(value) + "; " + limit + " is " + std::to_string(end);
  };
  if (call.query_start[0] != 0 || call.query_start[call.num_seqs] != call.num_tokens) {
    return outside("the last query_start", call.query_start[call.num_seqs], "the number of tokens", call.num_tokens);
  }
  const std::int64_t num_slots = call.num_blocks * call.block_size;
  for (std::int64_t token = 0; token < call.num_tokens; ++token) {
    const std::int64_t slot = call.slot_mapping[token], position = call.positions[token];
    if (slot < 0 || slot >= num_slots) return outside("a slot", slot, "the number of slots", num_slots);
    if (position < 0 || position >= call.max_positions) {
      return outside("a position", position, "the number of rows of cos and sin", call.max_positions);
    }
  }
  for (std::int64_t sequence = 0; sequence < call.num_seqs; ++sequence) {
    const std::int64_t queries = std::int64_t{call.query_start[sequence + 1]} - call.query_start[sequence];
    const std::int64_t context = call.context_lens[sequence];
    const std::int64_t blocks = (context + queries + call.block_size - 1) / call.block_size;
    if (queries < 0) return outside("a number of queries", queries, "the least", 0);
    if (context < 0) return outside("a context length", context, "the least", 0);
    if (queries == 0) continue;
    if (blocks > call.max_blocks) return outside("a sequence's number of blocks", blocks, "the table's", call.max_blocks);
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t block = call.block_tables[sequence * call.max_blocks + i];
      if (block < 0 || block >= call.num_blocks) return outside("a block", block, "the number of blocks", call.num_blocks);
    }
  }
  return {};
}

}  // namespace nanovllm

// What every operator needs to be called by ONNX Runtime. An operator is a class with
//
//     static constexpr const char* kName;
//     static constexpr OrtElementType kInputs[], kOutputs[];
//     static constexpr std::size_t kNumRequired;    of the inputs; those after them may be missing. Left out: all
//     Op(const Ort&, const OrtKernelInfo*);         for each node; throws KernelError
//     void compute(OrtKernelContext*) const;        throws KernelError
#pragma once

#include <array>
#include <exception>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "ort_abi.h"
#include "parallel.h"

namespace nanovllm {

// A failure that ONNX Runtime reports to the caller: its own status, or words of ours.
struct KernelError : std::runtime_error {
  explicit KernelError(const std::string& message) : std::runtime_error(message) {}
  explicit KernelError(OrtStatus* status) : std::runtime_error("ONNX Runtime refused a call"), status(status) {}
  OrtStatus* status = nullptr;  // owned by who catches
};

inline void require(OrtStatus* status) {
  if (status != nullptr) throw KernelError(status);
}

inline void require(bool condition, const char* message) {
  if (!condition) throw KernelError(std::string(message));
}

// A tensor's memory and shape; unused dimensions are 1.
struct Tensor {
  void* data = nullptr;
  std::size_t rank = 0;
  std::array<std::int64_t, 4> dims = {1, 1, 1, 1};

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

inline Tensor tensor_of(const Ort& ort, const OrtValue* value) {
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  require(ort.tensor_data(value, &tensor.data));
  require(ort.type_and_shape(value, &info));
  OrtStatus* status = ort.num_dimensions(info, &tensor.rank);
  const bool fits = tensor.rank <= tensor.dims.size();
  if (status == nullptr && fits) status = ort.dimensions(info, tensor.dims.data(), tensor.rank);
  ort.release(info);
  require(status);
  require(fits, "a tensor has more than 4 axes");
  return tensor;
}

inline Tensor input_of(const Ort& ort, const OrtKernelContext* context, std::size_t index) {
  const OrtValue* value = nullptr;
  require(ort.input(context, index, &value));
  return tensor_of(ort, value);
}

// An input that may be missing: its memory is null then.
inline Tensor optional_input_of(const Ort& ort, const OrtKernelContext* context, std::size_t index) {
  const OrtValue* value = nullptr;
  require(ort.input(context, index, &value));
  return value == nullptr ? Tensor() : tensor_of(ort, value);
}

inline Tensor output_of(const Ort& ort, OrtKernelContext* context, std::size_t index, const Tensor& shape) {
  OrtValue* value = nullptr;
  require(ort.output(context, index, shape.dims.data(), shape.rank, &value));
  Tensor tensor = shape;
  require(ort.tensor_data(value, &tensor.data));
  return tensor;
}

// The threads of the session that runs a node.
class SessionThreads final : public Parallel {
 public:
  SessionThreads(const Ort& ort, const OrtKernelContext* context) : ort_(ort), context_(context) {}

  // One batch a task, so that threads take tasks as they become free. What a task throws is thrown here, once all have
  // ended: nothing may pass through the frames of the host's threads.
  void run(std::size_t count, void (*task)(void*, std::size_t), void* data) const override {
    Job job{task, data, {}, nullptr};
    require(ort_.parallel_for(context_, run_task, count, count, &job));
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  struct Job {
    void (*task)(void*, std::size_t);
    void* data;
    std::mutex mutex;
    std::exception_ptr error;
  };

  static void run_task(void* data, std::size_t index) noexcept {
    Job& job = *static_cast<Job*>(data);
    try {
      job.task(job.data, index);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(job.mutex);
      job.error = std::current_exception();
    }
  }

  const Ort& ort_;
  const OrtKernelContext* context_;
};

template <typename Body>
OrtStatus* guarded(const Ort& ort, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const KernelError& error) {
    return error.status != nullptr ? error.status : ort.create_status(kOrtFail, error.what());
  } catch (const std::exception& error) {
    return ort.create_status(kOrtFail, error.what());
  }
}

// One node: the operator with the table that it was made with.
template <typename Op>
struct Node {
  Ort ort;
  Op op;
  Node(OrtApi* api, const OrtKernelInfo* info) : ort(api), op(ort, info) {}
};

template <typename Op, typename = void>
constexpr std::size_t kRequiredInputs = std::size(Op::kInputs);

template <typename Op>
constexpr std::size_t kRequiredInputs<Op, std::void_t<decltype(Op::kNumRequired)>> = Op::kNumRequired;

// The entries that ONNX Runtime calls for an operator.
template <typename Op>
OrtCustomOp custom_op() {
  OrtCustomOp entries = {};
  entries.version = kOrtApiVersion;
  entries.GetName = [](const OrtCustomOp*) { return Op::kName; };
  entries.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  entries.GetInputType = [](const OrtCustomOp*, std::size_t index) { return Op::kInputs[index]; };
  entries.GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kInputs); };
  entries.GetOutputType = [](const OrtCustomOp*, std::size_t index) { return Op::kOutputs[index]; };
  entries.GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kOutputs); };
  entries.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t index) {
    return index < kRequiredInputs<Op> ? kOrtRequired : kOrtOptional;
  };
  entries.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return kOrtRequired; };
  entries.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return kOrtDefaultMemory; };
  entries.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  entries.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  entries.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  entries.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  entries.CreateKernelV2 = [](const OrtCustomOp*, OrtApi* api, const OrtKernelInfo* info, void** node) {
    return guarded(Ort(api), [&] { *node = new Node<Op>(api, info); });
  };
  entries.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto* node = static_cast<const Node<Op>*>(kernel);
    return guarded(node->ort, [&] { node->op.compute(context); });
  };
  entries.KernelDestroy = [](void* kernel) { delete static_cast<Node<Op>*>(kernel); };
  entries.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  entries.GetEndVersion = [](const OrtCustomOp*) { return 0x7fffffff; };
  return entries;
}

}  // namespace nanovllm

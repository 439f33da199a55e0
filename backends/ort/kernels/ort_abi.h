// The few entries of ONNX Runtime's C interface that the kernels use, declared here so that no header of it is needed.
//
// Source: include/onnxruntime/core/session/onnxruntime_c_api.h. `OrtApi` is a table of function pointers that is only
// ever appended to; onnxruntime/core/session/onnxruntime_c_api.cc lists it in order and asserts the index of the last
// entry of every version: ReleaseCustomOpDomain is 101 (version 1), GetSessionConfigEntry 238 (14), GetBuildInfoString
// 254 (15), KernelContext_GetResource 265 (16), SessionOptionsAppendExecutionProvider_OpenVINO_V2 275 (17). The indices
// below are counted in that list.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

using OrtApi = void* const;  // the table: an array of function pointers

struct OrtApiBase {
  OrtApi* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

enum OrtElementType : int {  // ONNXTensorElementDataType
  ORT_FLOAT = 1,
  ORT_UINT8 = 2,
  ORT_INT8 = 3,
  ORT_INT32 = 6,
  ORT_INT64 = 7,
};

// A custom operator, as of version 17. Entries that later versions appended are read only where `version` says so.
struct OrtCustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  OrtElementType (*GetInputType)(const OrtCustomOp*, std::size_t index);
  std::size_t (*GetInputTypeCount)(const OrtCustomOp*);
  OrtElementType (*GetOutputType)(const OrtCustomOp*, std::size_t index);
  std::size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, std::size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, std::size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, std::size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void* shape_context);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  std::size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  std::size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

namespace nanovllm {

constexpr std::uint32_t kOrtApiVersion = 17;  // of ONNX Runtime 1.17, the first with KernelContext_ParallelFor
constexpr int kOrtFail = 1;                   // ORT_FAIL
constexpr int kOrtRequired = 0;               // INPUT_OUTPUT_REQUIRED
constexpr int kOrtOptional = 1;               // INPUT_OUTPUT_OPTIONAL
constexpr int kOrtDefaultMemory = 0;          // OrtMemTypeDefault

// Typed access to the table.
class Ort {
 public:
  explicit Ort(OrtApi* api) : api_(api) {}

  OrtStatus* create_status(int code, const char* message) const {
    return entry<OrtStatus* (*)(int, const char*)>(0)(code, message);
  }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) const {
    return entry<OrtStatus* (*)(const char*, OrtCustomOpDomain**)>(26)(name, out);
  }
  OrtStatus* add_to_domain(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return entry<OrtStatus* (*)(OrtCustomOpDomain*, const OrtCustomOp*)>(27)(domain, op);
  }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return entry<OrtStatus* (*)(OrtSessionOptions*, OrtCustomOpDomain*)>(28)(options, domain);
  }
  OrtStatus* tensor_data(const OrtValue* value, void** out) const {  // GetTensorMutableData
    return entry<OrtStatus* (*)(const OrtValue*, void**)>(51)(value, out);
  }
  OrtStatus* num_dimensions(const OrtTensorTypeAndShapeInfo* info, std::size_t* out) const {
    return entry<OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, std::size_t*)>(61)(info, out);
  }
  OrtStatus* dimensions(const OrtTensorTypeAndShapeInfo* info, std::int64_t* out, std::size_t count) const {
    return entry<OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t)>(62)(info, out, count);
  }
  OrtStatus* type_and_shape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const {
    return entry<OrtStatus* (*)(const OrtValue*, OrtTensorTypeAndShapeInfo**)>(65)(value, out);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, float* out) const {
    return entry<OrtStatus* (*)(const OrtKernelInfo*, const char*, float*)>(85)(info, name, out);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, std::int64_t* out) const {
    return entry<OrtStatus* (*)(const OrtKernelInfo*, const char*, std::int64_t*)>(86)(info, name, out);
  }
  OrtStatus* input(const OrtKernelContext* context, std::size_t index, const OrtValue** out) const {
    return entry<OrtStatus* (*)(const OrtKernelContext*, std::size_t, const OrtValue**)>(90)(context, index, out);
  }
  OrtStatus* output(OrtKernelContext* context, std::size_t index, const std::int64_t* dims, std::size_t count,
                    OrtValue** out) const {
    return entry<OrtStatus* (*)(OrtKernelContext*, std::size_t, const std::int64_t*, std::size_t, OrtValue**)>(91)(
        context, index, dims, count, out);
  }
  void release(OrtStatus* status) const { entry<void (*)(OrtStatus*)>(93)(status); }
  void release(OrtTensorTypeAndShapeInfo* info) const { entry<void (*)(OrtTensorTypeAndShapeInfo*)>(99)(info); }
  OrtStatus* constant_input(const OrtKernelInfo* info, std::size_t index, int* is_constant,
                            const OrtValue** out) const {  // KernelInfoGetConstantInput_tensor
    return entry<OrtStatus* (*)(const OrtKernelInfo*, std::size_t, int*, const OrtValue**)>(249)(info, index,
                                                                                                is_constant, out);
  }
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*task)(void*, std::size_t), std::size_t total,
                          std::size_t num_batch, void* data) const {
    return entry<OrtStatus* (*)(const OrtKernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t,
                                void*)>(274)(context, task, total, num_batch, data);
  }

 private:
  template <typename Function>
  Function entry(std::size_t index) const {
    return reinterpret_cast<Function>(api_[index]);
  }

  OrtApi* api_;
};

}  // namespace nanovllm

// What ONNX Runtime calls when a session's options name this library: it registers the operators.
#include "attention_op.h"
#include "block_linear_op.h"
#include "custom_op.h"
#include "gated_silu_op.h"
#include "greedy_head_op.h"
#include "quantized_linear_op.h"

namespace {

using nanovllm::BlockLinearForm;
using nanovllm::PanelLinearForm;
using nanovllm::RowSource;

// A domain with the operators, each of which is one line of `ops`; null if ONNX Runtime refuses them.
OrtCustomOpDomain* make_domain(const nanovllm::Ort& ort) {
  static const OrtCustomOp ops[] = {
      nanovllm::custom_op<nanovllm::PagedAttentionOp>(),
      nanovllm::custom_op<nanovllm::PagedAttentionBFloat16Op>(),
      nanovllm::custom_op<nanovllm::PagedAttentionInt8Op>(),
      nanovllm::custom_op<nanovllm::RowLinear>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::plain, false, false>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::plain, false, true>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::plain, true, false>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::plain, true, true>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::rms_norm, false, false>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::rms_norm, false, true>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::rms_norm, true, false>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::rms_norm, true, true>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::gated_silu, false, false>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::gated_silu, false, true>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::gated_silu, true, false>>(),
      nanovllm::custom_op<PanelLinearForm<RowSource::gated_silu, true, true>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::plain, false, true>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::plain, true, false>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::plain, true, true>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::rms_norm, false, false>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::rms_norm, false, true>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::rms_norm, true, false>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::rms_norm, true, true>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::gated_silu, false, false>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::gated_silu, false, true>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::gated_silu, true, false>>(),
      nanovllm::custom_op<BlockLinearForm<RowSource::gated_silu, true, true>>(),
      nanovllm::custom_op<nanovllm::GatedSiluOp>(),
      nanovllm::custom_op<nanovllm::GreedyHeadOp>(),
  };
  OrtCustomOpDomain* domain = nullptr;
  OrtStatus* status = ort.create_domain("nanovllm", &domain);
  for (std::size_t i = 0; status == nullptr && i < std::size(ops); ++i) status = ort.add_to_domain(domain, &ops[i]);
  if (status == nullptr) return domain;
  ort.release(status);
  return nullptr;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                                const OrtApiBase* base) {
  const nanovllm::Ort ort(base->GetApi(nanovllm::kOrtApiVersion));
  static OrtCustomOpDomain* const domain = make_domain(ort);  // kept: sessions refer to it
  if (domain == nullptr) return ort.create_status(nanovllm::kOrtFail, "the operators could not be registered");
  return ort.add_domain(options, domain);
}

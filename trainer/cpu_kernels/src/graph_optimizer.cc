// Puts the operations of operations.cc into a graph, after TensorFlow's own optimizers:
//
//   a convolution that pointwise.h or winograd.h is faster at,  -> SlimHorovodConvolution
//   with what TensorFlow has fused with it, or its gradient by
//   the inputs; in bfloat16 unless these are to be kept
//   BN, and the ReLU that these have fused with it              -> SlimHorovodNorm
//   BN by moving averages of what nothing else needs of a       -> a part of
//   convolution                                                    SlimHorovodConvolution
//   a tensor plus BN's gradient, which nothing else needs       -> an addend of
//                                                                  SlimHorovodNormGradient
//   the gradient by a bias, which is the sum of BN's gradient,  -> the sums of
//   or of what that has become                                     SlimHorovodNormGradient
//   a gradient, which may have been cast from bfloat16, plus    -> SlimHorovodDecayedGradient
//   a tensor times a number: weight decay
//
// Each saves the time in which large tensors are read once more, or read and written. All nodes
// keep their names and outputs, but for a convolution that BN has become a part of, and for BN's
// gradient, which is the sum then. Bodies of functions are left alone: XLA may have to compile
// them.

#include <algorithm>
#include <string>
#include <vector>

#include "convolution_rewrites.h"
#include "decay_rewrite.h"
#include "norm_rewrites.h"
#include "rewritten_graph.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer_registry.h"
#include "tensorflow/core/grappler/utils/functions.h"

namespace optimizer {
namespace {

// Each rewrite looks for what those before it have left.
void Rewrite(bool keeps_bfloat16_convolutions, RewrittenGraph* graph) {
  for (auto& [name, node] : graph->nodes()) {
    if (IsConvolution(*node) && !(keeps_bfloat16_convolutions && IsOfBfloat16(*node)))
      MakeOurConvolution(graph, node);
  }
  for (auto& [name, node] : graph->nodes()) {
    if (CanBeOurNorm(graph, *node)) MakeOurNorm(node);
  }
  for (auto& [name, node] : graph->nodes()) {
    if (node->op() == kNorm) MergeNorm(graph, node);
  }
  for (auto& [name, node] : graph->nodes()) {
    if (node->op() == "AddN") MergeAddition(graph, node);
  }
  for (auto& [name, node] : graph->nodes()) {
    if (node->op() == kBiasGradient) MergeSum(graph, node);
  }
  for (auto& [name, node] : graph->nodes()) {
    if (node->op() == "AddN") MergeDecay(graph, node);
  }
}

class SlimHorovodGraphOptimizer : public tensorflow::grappler::CustomGraphOptimizer {
 public:
  // The parameters are those of library.add_optimizer.
  absl::Status Init(const tensorflow::RewriterConfig_CustomGraphOptimizer* config) override {
    if (config == nullptr) return absl::OkStatus();
    const auto found = config->parameter_map().find("keeps_bfloat16_convolutions");
    keeps_bfloat16_convolutions_ = found != config->parameter_map().end() && found->second.b();
    return absl::OkStatus();
  }
  std::string name() const override { return "SlimHorovodGraphOptimizer"; }
  bool UsesFunctionLibrary() const override { return false; }

  absl::Status Optimize(tensorflow::grappler::Cluster*,
                        const tensorflow::grappler::GrapplerItem& item, GraphDef* graph) override {
    *graph = item.graph;
    using tensorflow::grappler::GrapplerFunctionItem;
    const bool is_function = dynamic_cast<const GrapplerFunctionItem*>(&item) != nullptr;
    if (!is_function) {
      RewrittenGraph rewritten(item, graph);
      Rewrite(keeps_bfloat16_convolutions_, &rewritten);
    }
    return absl::OkStatus();
  }

 private:
  bool keeps_bfloat16_convolutions_ = false;
};

// Once: to register it again, with another copy of this library, would end the process.
const bool is_registered = [] {
  using Registry = tensorflow::grappler::CustomGraphOptimizerRegistry;
  const std::string name = SlimHorovodGraphOptimizer().name();
  const std::vector<std::string> names = Registry::GetRegisteredOptimizers();
  if (std::find(names.begin(), names.end(), name) == names.end())
    Registry::RegisterOptimizerOrDie([] { return new SlimHorovodGraphOptimizer; }, name);
  return true;
}();

}  // namespace
}  // namespace optimizer

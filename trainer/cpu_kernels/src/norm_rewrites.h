// What becomes a SlimHorovodNorm, and what SlimHorovodNormGradient does in passing: see
// graph_optimizer.cc.

#ifndef TRAINER_CPU_KERNELS_NORM_REWRITES_H_
#define TRAINER_CPU_KERNELS_NORM_REWRITES_H_

#include <string>

#include "rewritten_graph.h"

namespace optimizer {

constexpr char kNorm[] = "SlimHorovodNorm";
constexpr char kNormGradient[] = "SlimHorovodNormGradient";
constexpr char kBiasGradient[] = "SlimHorovodBiasGradient";
constexpr int kNormGradientInputs = 6;  // Without an addend.
constexpr int kSums = 3;                // An output of kNormGradient.
constexpr int kReserveSpace3 = 5;       // An output of FusedBatchNormV3.

inline std::string Activation(const NodeDef& node) {
  std::string activation = "Identity";
  TryGetNodeAttr(node, "activation_mode", &activation);
  return activation;
}

inline bool CanBeOurNorm(RewrittenGraph* graph, const NodeDef& node) {
  if (node.op() != "FusedBatchNormV3" && node.op() != "_FusedBatchNormEx") return false;
  // TensorFlow's own gradients of BN need this, each in a form of its own.
  if (graph->CountNeeds(node, kReserveSpace3) > 0) return false;
  std::string format;
  float average_factor = 1;
  int side_inputs = 0;
  TryGetNodeAttr(node, "exponential_avg_factor", &average_factor);
  TryGetNodeAttr(node, "num_side_inputs", &side_inputs);
  return IsOfKnownType(node) && TryGetNodeAttr(node, "data_format", &format) &&
         format == "NHWC" && average_factor == 1 && side_inputs == 0 &&
         (Activation(node) == "Identity" || Activation(node) == "Relu");
}

// The inputs and outputs are the same, in the same order.
inline void MakeOurNorm(NodeDef* node) {
  const bool relu = Activation(*node) == "Relu";
  Become(kNorm, {"T", "epsilon", "is_training"}, node);
  AddNodeAttr("relu", relu, node);
}

inline void MergeAddition(RewrittenGraph* graph, NodeDef* addition) {
  int terms;
  if (!TryGetNodeAttr(*addition, "N", &terms) || terms != 2) return;
  for (int i = 0; i < 2; ++i) {
    NodeDef* const gradient = graph->FindInput(*addition, i, kNormGradient);
    if (gradient == nullptr || gradient->attr().at("num_addends").i() > 0 ||
        gradient->attr().at("with_sums").b() ||  // They are without the addend.
        graph->CountNeeds(*gradient, 0) > 1)
      continue;
    const std::string other = addition->input(1 - i);
    if (!graph->CanWaitFor(*gradient, other)) continue;
    InsertInputs(kNormGradientInputs, {other}, gradient);
    (*gradient->mutable_attr())["num_addends"].set_i(1);
    addition->mutable_input()->DeleteSubrange(1 - i, 1);
    Become("Identity", {"T"}, addition);
    return;
  }
}

// In bfloat16, the sum is of what will be rounded, and rounded once itself.
inline void MergeSum(RewrittenGraph* graph, NodeDef* by_bias) {
  NodeDef* gradient = graph->FindInput(*by_bias, 0, kNormGradient);
  if (gradient == nullptr) {
    const NodeDef* const same = graph->FindInput(*by_bias, 0, "Identity");
    const bool waits = same != nullptr && same->input_size() > 1;
    if (same != nullptr && !waits) gradient = graph->FindInput(*same, 0, kNormGradient);
  }
  if (gradient == nullptr) return;
  (*gradient->mutable_attr())["with_sums"].set_b(true);
  by_bias->set_input(0, TensorId(gradient->name(), kSums).ToString());
  const DataType type = by_bias->attr().at("T").type();
  Become("Cast", {}, by_bias);
  AddNodeAttr("SrcT", tensorflow::DT_FLOAT, by_bias);
  AddNodeAttr("DstT", type, by_bias);
  AddNodeAttr("Truncate", false, by_bias);
}

}  // namespace optimizer

#endif  // TRAINER_CPU_KERNELS_NORM_REWRITES_H_

// What becomes a SlimHorovodConvolution, or a part of one: see graph_optimizer.cc.

#ifndef TRAINER_CPU_KERNELS_CONVOLUTION_REWRITES_H_
#define TRAINER_CPU_KERNELS_CONVOLUTION_REWRITES_H_

#include <string>
#include <vector>

#include "convolution.h"
#include "pointwise.h"
#include "rewritten_graph.h"
#include "winograd_tiles.h"

namespace optimizer {

constexpr char kConvolution[] = "SlimHorovodConvolution";
constexpr char kInputGradient[] = "Conv2DBackpropInput";
constexpr int kConvolutionInputs = 2;  // Without BN's.
constexpr int kNormInputs = 4;  // Of each channel: scale, offset, mean, variance.
constexpr int kNormOutputs = 6;

// What TensorFlow has fused with a convolution, in this order.
struct Fused {
  bool norm = false, bias = false, addend = false, relu = false, others = false;
};
inline Fused FindFused(const NodeDef& node) {
  std::vector<std::string> kinds;
  TryGetNodeAttr(node, "fused_ops", &kinds);
  size_t at = 0;
  const auto comes = [&](const char* kind) {
    const bool is_next = at < kinds.size() && kinds[at] == kind;
    at += is_next;
    return is_next;
  };
  Fused fused;
  fused.norm = comes("FusedBatchNorm");
  fused.bias = !fused.norm && comes("BiasAdd");
  fused.addend = fused.bias && comes("Add");
  fused.relu = comes("Relu");
  fused.others = at < kinds.size();
  return fused;
}

// A convolution that moves by one pixel, or the gradient of one by its inputs.
inline bool IsConvolution(const NodeDef& node) {
  if (node.op() != "Conv2D" && node.op() != "_FusedConv2D" && node.op() != kInputGradient)
    return false;
  std::string format;
  std::vector<int> strides, dilations;
  TryGetNodeAttr(node, "dilations", &dilations);
  const std::vector<int> ones(4, 1);
  return IsOfKnownType(node) && TryGetNodeAttr(node, "data_format", &format) &&
         format == "NHWC" && TryGetNodeAttr(node, "strides", &strides) && strides == ones &&
         (dilations.empty() || dilations == ones) && !FindFused(node).others;
}

// Before the first row or column, which `axis` of the explicit paddings has.
inline int FindPadding(const NodeDef& node, int axis, int in, int size, int out) {
  std::vector<int> padding;
  TryGetNodeAttr(node, "explicit_paddings", &padding);
  // As much on both sides, or none: the stride is 1, and the kernels' sizes are odd.
  if (padding.size() != 8) return (out + size - 1 - in) / 2;
  return node.op() == kInputGradient ? size - 1 - padding[axis] : padding[axis];
}

inline void MakeOurConvolution(RewrittenGraph* graph, NodeDef* node) {
  const bool is_gradient = node->op() == kInputGradient;
  const auto& inputs = graph->FindInputs(*node);
  const std::vector<int> in = FindSizes(inputs, is_gradient ? 2 : 0);
  const std::vector<int> filter = FindSizes(inputs, 1);
  const std::vector<int> out = FindSizes(graph->FindOutputs(*node), 0);
  if (in.size() != 4 || filter.size() != 4 || out.size() != 4) return;
  const bool is_grouped =
      in[3] != filter[is_gradient ? 3 : 2] || out[3] != filter[is_gradient ? 2 : 3];
  if (is_grouped) return;
  const Shape shape{
      .batch = in[0],
      .height = in[1],
      .width = in[2],
      .in_channels = in[3],
      .out_height = out[1],
      .out_width = out[2],
      .out_channels = out[3],
      .kernel_height = filter[0],
      .kernel_width = filter[1],
      .stride = 1,
      .top = 0,  // Whether the kernels pay does not depend on the padding.
      .left = 0,
  };
  const Fused fused = FindFused(*node);
  if (!pointwise::Pays(shape) && (fused.addend || !winograd::Pays(shape))) return;
  const int top = FindPadding(*node, 2, in[1], filter[0], out[1]);
  const int left = FindPadding(*node, 4, in[2], filter[1], out[2]);
  const std::vector<int> padding{top, out[1] + filter[0] - 1 - in[1] - top,  //
                                 left, out[2] + filter[1] - 1 - in[2] - left};
  float epsilon = 0;
  TryGetNodeAttr(*node, "epsilon", &epsilon);
  if (is_gradient) {  // The sizes of its result, the filter, and the maps.
    node->mutable_input()->SwapElements(0, 2);
    node->mutable_input()->DeleteSubrange(2, 1);
  }
  Become(kConvolution, {"T"}, node);
  AddNodeAttr("num_bias", fused.bias ? 1 : 0, node);
  AddNodeAttr("num_norm", fused.norm ? kNormInputs : 0, node);
  AddNodeAttr("num_addends", fused.addend ? 1 : 0, node);
  AddNodeAttr("padding", padding, node);
  AddNodeAttr("is_gradient", is_gradient, node);
  AddNodeAttr("epsilon", epsilon, node);
  AddNodeAttr("relu", fused.relu, node);
}

inline void MergeNorm(RewrittenGraph* graph, NodeDef* norm) {
  NodeDef* const convolution = graph->FindInput(*norm, 0, kConvolution);
  if (convolution == nullptr || norm->attr().at("is_training").b() ||
      convolution->input_size() > kConvolutionInputs || convolution->attr().at("relu").b() ||
      graph->CountNeeds(*convolution, 0) > 1)
    return;
  for (int i = 1; i < kNormOutputs; ++i)
    if (graph->CountNeeds(*norm, i) > 0) return;
  const std::vector<std::string> parameters(norm->input().begin() + 1,
                                            norm->input().begin() + 1 + kNormInputs);
  for (const std::string& parameter : parameters)
    if (!graph->CanWaitFor(*convolution, parameter)) return;
  InsertInputs(kConvolutionInputs, parameters, convolution);
  auto& attributes = *convolution->mutable_attr();
  attributes["num_norm"].set_i(kNormInputs);
  attributes["epsilon"] = norm->attr().at("epsilon");
  attributes["relu"] = norm->attr().at("relu");
  norm->mutable_input()->DeleteSubrange(1, kNormInputs);
  Become("Identity", {"T"}, norm);
}

}  // namespace optimizer

#endif  // TRAINER_CPU_KERNELS_CONVOLUTION_REWRITES_H_

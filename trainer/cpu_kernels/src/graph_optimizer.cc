// Puts the operations of operations.cc into a graph, after TensorFlow's own optimizers:
//
//   a convolution that pointwise.h or winograd.h is faster at,  -> SlimHorovodConvolution
//   with what TensorFlow has fused with it, or its gradient by
//   the inputs
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
// Each saves the time in which large tensors are read once more, or read and written. All nodes keep
// their names and outputs, but for a convolution that BN has become a part of, and for BN's gradient,
// which is the sum then. Bodies of functions are left alone: XLA may have to compile them.

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "pointwise.h"
#include "tensorflow/core/framework/graph.pb.h"
#include "tensorflow/core/framework/node_def_util.h"
#include "tensorflow/core/graph/tensor_id.h"
#include "tensorflow/core/grappler/costs/graph_properties.h"
#include "tensorflow/core/grappler/grappler_item.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer_registry.h"
#include "tensorflow/core/grappler/utils/functions.h"
#include "winograd.h"

namespace {

using tensorflow::AddNodeAttr;
using tensorflow::DataType;
using tensorflow::GraphDef;
using tensorflow::NodeDef;
using tensorflow::ParseTensorName;
using tensorflow::TensorId;
using tensorflow::TryGetNodeAttr;

constexpr char kConvolution[] = "SlimHorovodConvolution";
constexpr char kInputGradient[] = "Conv2DBackpropInput";
constexpr int kConvolutionInputs = 2;  // Without BN's.
constexpr char kNorm[] = "SlimHorovodNorm";
constexpr int kNormInputs = 4;  // Of each channel: scale, offset, mean, variance.
constexpr int kNormOutputs = 6;
constexpr char kNormGradient[] = "SlimHorovodNormGradient";
constexpr char kBiasGradient[] = "SlimHorovodBiasGradient";
constexpr int kNormGradientInputs = 6;  // Without an addend.
constexpr int kSums = 3;                // An output of kNormGradient.
constexpr int kReserveSpace3 = 5;       // An output of FusedBatchNormV3.
constexpr char kDecayedGradient[] = "SlimHorovodDecayedGradient";

class Rewriter {
 public:
  Rewriter(const tensorflow::grappler::GrapplerItem& item, GraphDef* graph) : properties_(item) {
    for (const std::string& tensor : item.fetch) ++needs_[Normalized(tensor)];
    for (const std::string& node : item.keep_ops) ++needs_[node];
    for (const auto& [tensor, value] : item.feed) fed_.insert(Normalized(tensor));
    for (NodeDef& node : *graph->mutable_node()) {
      nodes_[node.name()] = &node;
      for (const std::string& input : node.input()) ++needs_[Normalized(input)];
    }
  }

  void Run() {
    for (auto& [name, node] : nodes_) {
      if (IsConvolution(*node)) MakeOurConvolution(node);
    }
    for (auto& [name, node] : nodes_) {
      if (CanBeOurNorm(*node)) MakeOurNorm(node);
    }
    for (auto& [name, node] : nodes_) {
      if (node->op() == kNorm) MergeNorm(node);
    }
    for (auto& [name, node] : nodes_) {
      if (node->op() == "AddN") MergeAddition(node);
    }
    for (auto& [name, node] : nodes_) {
      if (node->op() == kBiasGradient) MergeSum(node);
    }
    for (auto& [name, node] : nodes_) {
      if (node->op() == "AddN") MergeDecay(node);
    }
  }

 private:
  static std::string Normalized(const std::string& input) {
    return ParseTensorName(input).ToString();
  }

  // The node whose first output a node's input is, if it is of that kind, and not fed.
  NodeDef* FindInput(const NodeDef& node, int i, const std::string& op) {
    if (fed_.count(Normalized(node.input(i)))) return nullptr;
    const TensorId id = ParseTensorName(node.input(i));
    const auto found = nodes_.find(std::string(id.node()));
    if (id.index() != 0 || found == nodes_.end() || found->second->op() != op) return nullptr;
    return found->second;
  }

  static bool IsOfKnownType(const NodeDef& node) {
    DataType type;
    return TryGetNodeAttr(node, "T", &type) &&
           (type == tensorflow::DT_FLOAT || type == tensorflow::DT_BFLOAT16);
  }

  // What TensorFlow has fused with a convolution, in this order.
  struct Fused {
    bool norm = false, bias = false, addend = false, relu = false, others = false;
  };
  static Fused FindFused(const NodeDef& node) {
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
  static bool IsConvolution(const NodeDef& node) {
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

  // The sizes of a tensor; none where they are not known before it is there.
  std::vector<int> FindSizes(const std::vector<tensorflow::OpInfo::TensorProperties>& tensors,
                             size_t i) {
    std::vector<int> sizes;
    if (i >= tensors.size() || tensors[i].shape().unknown_rank()) return {};
    for (const auto& dimension : tensors[i].shape().dim()) {
      if (dimension.size() < 0) return {};
      sizes.push_back(dimension.size());
    }
    return sizes;
  }

  // Of the tensors that a node had as inputs before anything was changed.
  const std::vector<tensorflow::OpInfo::TensorProperties>& FindInputs(const NodeDef& node) {
    if (!has_sizes_) {
      has_sizes_ = true;
      properties_.InferStatically(false, false, false, false).IgnoreError();  // None, then.
    }
    return properties_.GetInputProperties(node.name());
  }

  void MakeOurConvolution(NodeDef* node) {
    const bool is_gradient = node->op() == kInputGradient;
    const auto& inputs = FindInputs(*node);
    const std::vector<int> in = FindSizes(inputs, is_gradient ? 2 : 0);
    const std::vector<int> filter = FindSizes(inputs, 1);
    const std::vector<int> out = FindSizes(properties_.GetOutputProperties(node->name()), 0);
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

  // Before the first row or column, which `axis` of the explicit paddings has.
  static int FindPadding(const NodeDef& node, int axis, int in, int size, int out) {
    std::vector<int> padding;
    TryGetNodeAttr(node, "explicit_paddings", &padding);
    // As much on both sides, or none: the stride is 1, and the kernels' sizes are odd.
    if (padding.size() != 8) return (out + size - 1 - in) / 2;
    return node.op() == kInputGradient ? size - 1 - padding[axis] : padding[axis];
  }

  void MergeNorm(NodeDef* norm) {
    NodeDef* const convolution = FindInput(*norm, 0, kConvolution);
    if (convolution == nullptr || norm->attr().at("is_training").b() ||
        convolution->input_size() > kConvolutionInputs || convolution->attr().at("relu").b() ||
        needs_[TensorId(convolution->name(), 0).ToString()] > 1)
      return;
    for (int i = 1; i < kNormOutputs; ++i)
      if (needs_.count(TensorId(norm->name(), i).ToString())) return;
    const std::vector<std::string> parameters(norm->input().begin() + 1,
                                              norm->input().begin() + 1 + kNormInputs);
    for (const std::string& parameter : parameters)
      if (!CanWaitFor(*convolution, parameter)) return;
    InsertInputs(kConvolutionInputs, parameters, convolution);
    auto& attributes = *convolution->mutable_attr();
    attributes["num_norm"].set_i(kNormInputs);
    attributes["epsilon"] = norm->attr().at("epsilon");
    attributes["relu"] = norm->attr().at("relu");
    norm->mutable_input()->DeleteSubrange(1, kNormInputs);
    Become("Identity", {"T"}, norm);
  }

  // Data inputs are before those that only order.
  static void InsertInputs(int at, const std::vector<std::string>& tensors, NodeDef* node) {
    std::vector<std::string> inputs(node->input().begin(), node->input().end());
    inputs.insert(inputs.begin() + at, tensors.begin(), tensors.end());
    *node->mutable_input() = {inputs.begin(), inputs.end()};
  }

  static std::string Activation(const NodeDef& node) {
    std::string activation = "Identity";
    TryGetNodeAttr(node, "activation_mode", &activation);
    return activation;
  }

  bool CanBeOurNorm(const NodeDef& node) {
    if (node.op() != "FusedBatchNormV3" && node.op() != "_FusedBatchNormEx") return false;
    // TensorFlow's own gradients of BN need this, each in a form of its own.
    if (needs_.count(TensorId(node.name(), kReserveSpace3).ToString())) return false;
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
  static void MakeOurNorm(NodeDef* node) {
    const bool relu = Activation(*node) == "Relu";
    Become(kNorm, {"T", "epsilon", "is_training"}, node);
    AddNodeAttr("relu", relu, node);
  }

  // Changes what a node does; it keeps its name, its device, its inputs and some attributes. What
  // others say of its place is of no use any more: that was found before.
  static void Become(const std::string& op, const std::vector<std::string>& attributes,
                     NodeDef* node) {
    NodeDef after;
    after.set_name(node->name());
    after.set_op(op);
    after.set_device(node->device());
    *after.mutable_input() = node->input();
    for (const std::string& name : attributes)
      (*after.mutable_attr())[name] = node->attr().at(name);
    *node = after;
  }

  void MergeAddition(NodeDef* addition) {
    int terms;
    if (!TryGetNodeAttr(*addition, "N", &terms) || terms != 2) return;
    for (int i = 0; i < 2; ++i) {
      NodeDef* const gradient = FindInput(*addition, i, kNormGradient);
      if (gradient == nullptr || gradient->attr().at("num_addends").i() > 0 ||
          gradient->attr().at("with_sums").b() ||  // They are without the addend.
          needs_[TensorId(gradient->name(), 0).ToString()] > 1)
        continue;
      const std::string other = addition->input(1 - i);
      if (!CanWaitFor(*gradient, other)) continue;
      InsertInputs(kNormGradientInputs, {other}, gradient);
      (*gradient->mutable_attr())["num_addends"].set_i(1);
      addition->mutable_input()->DeleteSubrange(1 - i, 1);
      Become("Identity", {"T"}, addition);
      return;
    }
  }

  // In bfloat16, the sum is of what will be rounded, and rounded once itself.
  void MergeSum(NodeDef* by_bias) {
    NodeDef* gradient = FindInput(*by_bias, 0, kNormGradient);
    if (gradient == nullptr) {
      const NodeDef* const same = FindInput(*by_bias, 0, "Identity");
      const bool waits = same != nullptr && same->input_size() > 1;
      if (same != nullptr && !waits) gradient = FindInput(*same, 0, kNormGradient);
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

  void MergeDecay(NodeDef* addition) {
    int terms;
    if (!TryGetNodeAttr(*addition, "N", &terms) || terms != 2 ||
        addition->attr().at("T").type() != tensorflow::DT_FLOAT)
      return;
    for (int i = 0; i < 2; ++i) {
      const NodeDef* const decay = FindInput(*addition, i, "Mul");
      if (decay == nullptr || needs_[TensorId(decay->name(), 0).ToString()] > 1 ||
          needs_.count("^" + decay->name()))
        continue;
      const auto& factors = FindInputs(*decay);
      const auto is_number = [](const auto& tensor) {
        return !tensor.shape().unknown_rank() && tensor.shape().dim_size() == 0;
      };
      const int factor = std::find_if(factors.begin(), factors.end(), is_number) - factors.begin();
      if (factor == factors.size()) continue;
      std::string gradient = addition->input(1 - i);
      DataType type = tensorflow::DT_FLOAT;
      std::vector<const NodeDef*> merged{addition, decay};
      const NodeDef* const cast = FindInput(*addition, 1 - i, "Cast");
      if (cast != nullptr && cast->attr().at("SrcT").type() == tensorflow::DT_BFLOAT16) {
        gradient = cast->input(0);
        type = tensorflow::DT_BFLOAT16;
        merged.push_back(cast);
      }
      std::vector<std::string> inputs{gradient, decay->input(1 - factor), decay->input(factor)};
      for (const NodeDef* node : merged)
        for (const std::string& input : node->input())
          if (ParseTensorName(input).index() < 0) inputs.push_back(input);  // It only orders.
      *addition->mutable_input() = {inputs.begin(), inputs.end()};
      Become(kDecayedGradient, {"T"}, addition);
      (*addition->mutable_attr())["T"].set_type(type);
      return;
    }
  }

  // Whether a tensor can be made an input of a node: it does not depend on that, nor on a branch
  // that may not be taken, with which all of the node's results would be missing.
  bool CanWaitFor(const NodeDef& node, const std::string& tensor) {
    std::set<std::string> seen;
    std::vector<std::string> open{std::string(ParseTensorName(tensor).node())};
    while (!open.empty()) {
      const std::string name = open.back();
      open.pop_back();
      if (name == node.name()) return false;
      const auto found = nodes_.find(name);
      if (!seen.insert(name).second || found == nodes_.end()) continue;
      if (found->second->op() == "Switch" || found->second->op() == "RefSwitch") return false;
      for (const std::string& input : found->second->input())
        open.emplace_back(ParseTensorName(input).node());
    }
    return true;
  }

  tensorflow::grappler::GraphProperties properties_;
  bool has_sizes_ = false;
  std::map<std::string, NodeDef*> nodes_;
  std::map<std::string, int> needs_;  // How many inputs and fetches a tensor is.
  std::set<std::string> fed_;         // Tensors that are not computed, but given.
};

class SlimHorovodGraphOptimizer : public tensorflow::grappler::CustomGraphOptimizer {
 public:
  absl::Status Init(const tensorflow::RewriterConfig_CustomGraphOptimizer*) override {
    return absl::OkStatus();
  }
  std::string name() const override { return "SlimHorovodGraphOptimizer"; }
  bool UsesFunctionLibrary() const override { return false; }

  absl::Status Optimize(tensorflow::grappler::Cluster*,
                        const tensorflow::grappler::GrapplerItem& item, GraphDef* graph) override {
    *graph = item.graph;
    using tensorflow::grappler::GrapplerFunctionItem;
    const bool is_function = dynamic_cast<const GrapplerFunctionItem*>(&item) != nullptr;
    if (!is_function) Rewriter(item, graph).Run();
    return absl::OkStatus();
  }
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

// Puts the operations of operations.cc into a graph, after TensorFlow's own optimizers:
//
//   BN, and the ReLU that these have fused with it              -> SlimHorovodNorm
//   a tensor plus BN's gradient, which nothing else needs       -> an addend of
//                                                                  SlimHorovodNormGradient
//   the gradient by a bias, which is the sum of BN's gradient,  -> the sums of
//   or of what that has become                                     SlimHorovodNormGradient
//
// Each saves the time in which large maps are read once more, or read and written. All nodes keep
// their names and outputs, but BN's gradient, which is the sum then.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tensorflow/core/framework/graph.pb.h"
#include "tensorflow/core/framework/node_def_util.h"
#include "tensorflow/core/graph/tensor_id.h"
#include "tensorflow/core/grappler/grappler_item.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer_registry.h"

namespace {

using tensorflow::AddNodeAttr;
using tensorflow::DataType;
using tensorflow::GraphDef;
using tensorflow::NodeDef;
using tensorflow::ParseTensorName;
using tensorflow::TensorId;
using tensorflow::TryGetNodeAttr;

constexpr char kNorm[] = "SlimHorovodNorm";
constexpr char kNormGradient[] = "SlimHorovodNormGradient";
constexpr char kBiasGradient[] = "SlimHorovodBiasGradient";
constexpr int kNormGradientInputs = 6;  // Without an addend.
constexpr int kSums = 3;                // An output of kNormGradient.
constexpr int kReserveSpace3 = 5;       // An output of FusedBatchNormV3.

class Rewriter {
 public:
  Rewriter(const tensorflow::grappler::GrapplerItem& item, GraphDef* graph) {
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
      if (CanBeOurNorm(*node)) MakeOurNorm(node);
    }
    for (auto& [name, node] : nodes_) {
      if (node->op() == "AddN") MergeAddition(node);
    }
    for (auto& [name, node] : nodes_) {
      if (node->op() == kBiasGradient) MergeSum(node);
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

  static std::string Activation(const NodeDef& node) {
    std::string activation = "Identity";
    TryGetNodeAttr(node, "activation_mode", &activation);
    return activation;
  }

  bool CanBeOurNorm(const NodeDef& node) {
    if (node.op() != "FusedBatchNormV3" && node.op() != "_FusedBatchNormEx") return false;
    // TensorFlow's own gradients of BN need this, each in a form of its own.
    if (needs_.count(TensorId(node.name(), kReserveSpace3).ToString())) return false;
    DataType type;
    std::string format;
    float average_factor = 1;
    int side_inputs = 0;
    TryGetNodeAttr(node, "exponential_avg_factor", &average_factor);
    TryGetNodeAttr(node, "num_side_inputs", &side_inputs);
    return TryGetNodeAttr(node, "T", &type) &&
           (type == tensorflow::DT_FLOAT || type == tensorflow::DT_BFLOAT16) &&
           TryGetNodeAttr(node, "data_format", &format) && format == "NHWC" &&
           average_factor == 1 && side_inputs == 0 &&
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
      // Data inputs are before those that only order.
      std::vector<std::string> inputs(gradient->input().begin(), gradient->input().end());
      inputs.insert(inputs.begin() + kNormGradientInputs, other);
      *gradient->mutable_input() = {inputs.begin(), inputs.end()};
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
    Rewriter(item, graph).Run();
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

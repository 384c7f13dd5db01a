// A graph while it is rewritten, and what all rewrites do to its nodes: see graph_optimizer.cc.

#ifndef TRAINER_CPU_KERNELS_REWRITTEN_GRAPH_H_
#define TRAINER_CPU_KERNELS_REWRITTEN_GRAPH_H_

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tensorflow/core/framework/graph.pb.h"
#include "tensorflow/core/framework/node_def_util.h"
#include "tensorflow/core/graph/tensor_id.h"
#include "tensorflow/core/grappler/costs/graph_properties.h"
#include "tensorflow/core/grappler/grappler_item.h"

namespace optimizer {

using tensorflow::AddNodeAttr;
using tensorflow::DataType;
using tensorflow::GraphDef;
using tensorflow::NodeDef;
using tensorflow::ParseTensorName;
using tensorflow::TensorId;
using tensorflow::TryGetNodeAttr;
using TensorsProperties = std::vector<tensorflow::OpInfo::TensorProperties>;

// The output that a node has for others that only wait for it.
constexpr int kOrder = tensorflow::Graph::kControlSlot;

// A graph that is rewritten: where its nodes are, and who needs their results.
class RewrittenGraph {
 public:
  RewrittenGraph(const tensorflow::grappler::GrapplerItem& item, GraphDef* graph)
      : properties_(item) {
    for (const std::string& tensor : item.fetch) ++needs_[Normalized(tensor)];
    for (const std::string& node : item.keep_ops) ++needs_[node];
    for (const auto& [tensor, value] : item.feed) fed_.insert(Normalized(tensor));
    for (NodeDef& node : *graph->mutable_node()) {
      nodes_[node.name()] = &node;
      for (const std::string& input : node.input()) ++needs_[Normalized(input)];
    }
  }

  // All nodes, by name.
  std::map<std::string, NodeDef*>& nodes() { return nodes_; }

  // How many inputs and fetches a node's output is; output kOrder: nodes that only wait for it.
  int CountNeeds(const NodeDef& node, int output) const {
    const auto found = needs_.find(TensorId(node.name(), output).ToString());
    return found == needs_.end() ? 0 : found->second;
  }

  // The node whose first output a node's input is, if it is of that kind, and not fed.
  NodeDef* FindInput(const NodeDef& node, int i, const std::string& op) {
    if (fed_.count(Normalized(node.input(i)))) return nullptr;
    const TensorId id = ParseTensorName(node.input(i));
    const auto found = nodes_.find(std::string(id.node()));
    if (id.index() != 0 || found == nodes_.end() || found->second->op() != op) return nullptr;
    return found->second;
  }

  // Of the tensors that a node had as inputs, or as outputs, before anything was changed.
  const TensorsProperties& FindInputs(const NodeDef& node) {
    return InferProperties().GetInputProperties(node.name());
  }
  const TensorsProperties& FindOutputs(const NodeDef& node) {
    return InferProperties().GetOutputProperties(node.name());
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

 private:
  static std::string Normalized(const std::string& input) {
    return ParseTensorName(input).ToString();
  }

  // Takes a while, and is done once, for whoever asks first.
  const tensorflow::grappler::GraphProperties& InferProperties() {
    if (!has_sizes_) {
      has_sizes_ = true;
      properties_.InferStatically(false, false, false, false).IgnoreError();  // None, then.
    }
    return properties_;
  }

  tensorflow::grappler::GraphProperties properties_;
  bool has_sizes_ = false;
  std::map<std::string, NodeDef*> nodes_;
  std::map<std::string, int> needs_;  // How many inputs and fetches a tensor is.
  std::set<std::string> fed_;         // Tensors that are not computed, but given.
};

inline bool IsOfType(const NodeDef& node, DataType wanted) {
  DataType type;
  return TryGetNodeAttr(node, "T", &type) && type == wanted;
}
inline bool IsOfBfloat16(const NodeDef& node) {
  return IsOfType(node, tensorflow::DT_BFLOAT16);
}
inline bool IsOfKnownType(const NodeDef& node) {
  return IsOfType(node, tensorflow::DT_FLOAT) || IsOfBfloat16(node);
}

// The sizes of a tensor; none where they are not known before it is there.
inline std::vector<int> FindSizes(const TensorsProperties& tensors, size_t i) {
  std::vector<int> sizes;
  if (i >= tensors.size() || tensors[i].shape().unknown_rank()) return {};
  for (const auto& dimension : tensors[i].shape().dim()) {
    if (dimension.size() < 0) return {};
    sizes.push_back(dimension.size());
  }
  return sizes;
}

// Data inputs are before those that only order.
inline void InsertInputs(int at, const std::vector<std::string>& tensors, NodeDef* node) {
  std::vector<std::string> inputs(node->input().begin(), node->input().end());
  inputs.insert(inputs.begin() + at, tensors.begin(), tensors.end());
  *node->mutable_input() = {inputs.begin(), inputs.end()};
}

// Changes what a node does; it keeps its name, its device, its inputs and some attributes. What
// others say of its place is of no use any more: that was found before.
inline void Become(const std::string& op, const std::vector<std::string>& attributes,
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

}  // namespace optimizer

#endif  // TRAINER_CPU_KERNELS_REWRITTEN_GRAPH_H_

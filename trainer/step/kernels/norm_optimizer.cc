// Has BN, and the ReLU that TensorFlow's optimizers have fused with it, computed by SlimHorovodNorm.

#include <set>
#include <string>

#include "tensorflow/core/framework/graph.pb.h"
#include "tensorflow/core/framework/node_def_builder.h"
#include "tensorflow/core/framework/node_def_util.h"
#include "tensorflow/core/graph/tensor_id.h"
#include "tensorflow/core/grappler/grappler_item.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer.h"
#include "tensorflow/core/grappler/optimizers/custom_graph_optimizer_registry.h"

namespace {

using tensorflow::DataType;
using tensorflow::GraphDef;
using tensorflow::NodeDef;

class SlimHorovodNormOptimizer : public tensorflow::grappler::CustomGraphOptimizer {
 public:
  absl::Status Init(const tensorflow::RewriterConfig_CustomGraphOptimizer*) override {
    return absl::OkStatus();
  }
  std::string name() const override { return "SlimHorovodNormOptimizer"; }
  bool UsesFunctionLibrary() const override { return false; }

  absl::Status Optimize(tensorflow::grappler::Cluster*,
                        const tensorflow::grappler::GrapplerItem& item, GraphDef* graph) override {
    *graph = item.graph;
    // What TensorFlow's own gradients of BN need, each in a form of its own.
    std::set<std::string> with_own_gradient;
    for (const NodeDef& node : graph->node())
      for (const std::string& input : node.input()) {
        const tensorflow::TensorId id = tensorflow::ParseTensorName(input);
        if (id.index() == kReserveSpace3) with_own_gradient.emplace(id.node());
      }
    for (NodeDef& node : *graph->mutable_node())
      if (CanBeReplaced(node) && !with_own_gradient.count(node.name())) Replace(&node);
    return absl::OkStatus();
  }

 private:
  static constexpr int kReserveSpace3 = 5;

  static std::string Activation(const NodeDef& node) {
    std::string activation = "Identity";
    tensorflow::TryGetNodeAttr(node, "activation_mode", &activation);
    return activation;
  }

  static bool CanBeReplaced(const NodeDef& node) {
    if (node.op() != "FusedBatchNormV3" && node.op() != "_FusedBatchNormEx") return false;
    DataType type;
    std::string format;
    float of_new_average = 1;
    int side_inputs = 0;
    tensorflow::TryGetNodeAttr(node, "exponential_avg_factor", &of_new_average);
    tensorflow::TryGetNodeAttr(node, "num_side_inputs", &side_inputs);
    return tensorflow::TryGetNodeAttr(node, "T", &type) &&
           (type == tensorflow::DT_FLOAT || type == tensorflow::DT_BFLOAT16) &&
           tensorflow::TryGetNodeAttr(node, "data_format", &format) && format == "NHWC" &&
           of_new_average == 1 && side_inputs == 0 &&
           (Activation(node) == "Identity" || Activation(node) == "Relu");
  }

  // The inputs and outputs are the same, in the same order.
  static void Replace(NodeDef* node) {
    NodeDef by_ours;
    by_ours.set_name(node->name());
    by_ours.set_op("SlimHorovodNorm");
    by_ours.set_device(node->device());
    *by_ours.mutable_input() = node->input();
    for (const char* name : {"T", "epsilon", "is_training"})
      (*by_ours.mutable_attr())[name] = node->attr().at(name);
    tensorflow::AddNodeAttr("relu", Activation(*node) == "Relu", &by_ours);
    *node = by_ours;
  }
};

REGISTER_GRAPH_OPTIMIZER(SlimHorovodNormOptimizer);

}  // namespace

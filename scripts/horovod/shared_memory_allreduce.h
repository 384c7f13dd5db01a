// All-reduce of float32 tensors through memory that the workers of one host share.
//
// Gloo moves all bytes through the kernel's network, which takes the time of the cores that compute.
// Here each worker has a buffer that the others have mapped, too. Gloo tells when all are ready, so
// that a lost worker is noticed as everywhere else.

#ifndef SLIM_HOROVOD_SHARED_MEMORY_ALLREDUCE_H_
#define SLIM_HOROVOD_SHARED_MEMORY_ALLREDUCE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "gloo/allgather.h"
#include "gloo/barrier.h"
#include "gloo_operations.h"

namespace horovod {
namespace common {

// Copies past the cache. What a core has written, and holds in its cache, another one that has none
// in common with it gets at a fifth of the speed that it has from memory; nobody needs it here.
// A fence makes it visible.
inline void StoreFloats(const float* from, size_t count, float* to) {
#if defined(__SSE2__)
  const float* const end = from + count;
  const auto store_one = [&] {
    int bits;
    std::memcpy(&bits, from++, sizeof(bits));
    _mm_stream_si32(reinterpret_cast<int*>(to++), bits);
  };
  while (from != end && reinterpret_cast<uintptr_t>(to) % sizeof(__m128) != 0)
    store_one();
  for (; end - from >= 4; from += 4, to += 4)
    _mm_stream_ps(to, _mm_loadu_ps(from));
  while (from != end)
    store_one();
#else
  std::memcpy(to, from, count * sizeof(float));
#endif
}

inline void FenceStores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// A buffer of each worker, which all of them have mapped.
class SharedBuffers {
public:
  static constexpr size_t kElements = size_t{4} << 20; // Of each.

  // The buffers of all workers of `context`; null on all of them where one can't map another's:
  // they are in different containers, or the kernel has no such memory.
  //
  // Throws what Gloo throws where a worker is lost.
  static std::unique_ptr<SharedBuffers> Open(const std::shared_ptr<gloo::Context>& context) {
    const File file{memfd_create("slim-horovod", MFD_CLOEXEC)};
    Address address = {getpid(), file.descriptor, {}};
    bool is_good = file.descriptor >= 0 && ftruncate(file.descriptor, kBytes) == 0 &&
                   getentropy(&address.token, sizeof(address.token)) == 0 &&
                   pwrite(file.descriptor, &address, sizeof(address), 0) == sizeof(address);
    std::unique_ptr<SharedBuffers> buffers(new SharedBuffers);
    for (const Address& of : Gather(context, address))
      is_good = is_good && buffers->Map(of);
    const std::vector<char> answers = Gather(context, static_cast<char>(is_good));
    if (!std::all_of(answers.begin(), answers.end(), [](char answer) { return answer; }))
      buffers.reset();
    return buffers;
  }

  SharedBuffers(const SharedBuffers&) = delete;

  ~SharedBuffers() {
    for (float* buffer : buffers_)
      munmap(buffer, kBytes);
  }

  float* of(int rank) const { return buffers_[rank]; }

private:
  static constexpr size_t kBytes = kElements * sizeof(float);

  struct File {
    const int descriptor;
    ~File() {
      if (descriptor >= 0)
        close(descriptor);
    }
  };

  // Where a worker's buffer is found. It begins with this: numbers of processes mean other ones in
  // another container.
  struct Address {
    int64_t process;
    int64_t file;
    std::array<uint64_t, 2> token;
  };

  SharedBuffers() = default;

  bool Map(const Address& address) {
    const std::string path =
        "/proc/" + std::to_string(address.process) + "/fd/" + std::to_string(address.file);
    const File file{open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
    Address found = {};
    if (pread(file.descriptor, &found, sizeof(found), 0) != sizeof(found) ||
        std::memcmp(&found, &address, sizeof(found)) != 0)
      return false;
    void* buffer = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor, 0);
    if (buffer == MAP_FAILED)
      return false;
    buffers_.push_back(static_cast<float*>(buffer));
    return true;
  }

  // Every worker's value, in order of rank.
  template <typename T>
  static std::vector<T> Gather(const std::shared_ptr<gloo::Context>& context, T value) {
    std::vector<T> values(context->size);
    gloo::AllgatherOptions options(context);
    options.setInput(reinterpret_cast<char*>(&value), sizeof(T));
    options.setOutput(reinterpret_cast<char*>(values.data()), values.size() * sizeof(T));
    gloo::allgather(options);
    return values;
  }

  std::vector<float*> buffers_;
};

// Gloo's all-reduce, but for sums of float32 over all workers, where these share memory.
//
// The tensors, one behind the other, pass in pieces. Of each piece every worker adds up one
// segment, in order of rank: sums are the same whatever tensors are fused.
class SharedMemoryAllreduce : public GlooAllreduce {
public:
  explicit SharedMemoryAllreduce(HorovodGlobalState* global_state) : GlooAllreduce(global_state) {}

  Status Execute(std::vector<TensorTableEntry>& entries, const Response& response) override {
    if (!Serves(entries, response))
      return GlooAllreduce::Execute(entries, response);
    WaitForData(entries);
    double factor = response.postscale_factor();
    if (response.reduce_op() == ReduceOp::AVERAGE)
      factor /= size_;
    auto& timeline = global_state_->timeline;
    timeline.ActivityStartAll(entries, "SHARED_MEMORY_ALLREDUCE");
    Reduce(entries, static_cast<float>(factor));
    timeline.ActivityEndAll(entries);
    return Status::OK();
  }

private:
  // A buffer has two pieces that were copied in, behind them two that are summed.
  static constexpr size_t kPiece = SharedBuffers::kElements / 4;
  static constexpr size_t kBlock = 1024; // Stays in a core's first cache.

  // Elements [begin, end) of all tensors or of a piece.
  struct Range {
    size_t begin;
    size_t end;
  };

  // The same on all workers: it depends on what they have agreed on alone.
  bool Serves(const std::vector<TensorTableEntry>& entries, const Response& response) {
    const auto& first = entries.at(0);
    const auto operation = response.reduce_op();
    if (first.process_set_id != 0 || first.device != CPU_DEVICE_ID ||
        first.tensor->dtype() != HOROVOD_FLOAT32 || response.prescale_factor() != 1.0 ||
        (operation != ReduceOp::SUM && operation != ReduceOp::AVERAGE))
      return false;
    if (size_ == 0) {
      const auto context = Context();
      rank_ = context->rank;
      size_ = context->size;
      if (size_ > 1 && global_state_->process_set_table.Get(0).controller->GetLocalSize() == size_)
        buffers_ = SharedBuffers::Open(context);
    }
    return buffers_ != nullptr;
  }

  // Not kept: it ends with Horovod, and others learn from its end that this worker is gone.
  std::shared_ptr<gloo::Context> Context() const {
    return global_state_->process_set_table.Get(0).gloo_context.ctx;
  }

  void Reduce(std::vector<TensorTableEntry>& entries, float factor) {
    const size_t total = NumElements(entries);
    const auto piece = [total](size_t begin) {
      return Range{begin, std::min(begin + kPiece, total)};
    };
    // Behind each barrier a piece is summed, and the next one copied in, by all workers. What they
    // may still read meanwhile has another place: the sums of this piece, the next one's summands.
    CopyIn(entries, piece(0));
    Barrier();
    for (size_t begin = 0; begin < total; begin += kPiece) {
      Sum(entries, piece(begin), factor);
      if (begin + kPiece < total)
        CopyIn(entries, piece(begin + kPiece));
      Barrier();
      CopyOut(entries, piece(begin));
    }
    FenceStores(); // Others of this process's threads read next.
  }

  void Barrier() {
    FenceStores();
    gloo::BarrierOptions options(Context());
    gloo::barrier(options);
  }

  // What a worker adds up of a piece: whole lines of the cache.
  Range Segment(Range piece, int rank) const {
    constexpr size_t kLine = 16;
    const size_t lines = (piece.end - piece.begin + kLine - 1) / kLine;
    const auto bound = [&](size_t number) {
      return std::min(piece.begin + lines * number / size_ * kLine, piece.end);
    };
    return {bound(rank), bound(rank + 1)};
  }

  // Where a worker has element `element` of all, of its own or summed, while its piece passes.
  float* Own(int rank, size_t element) const {
    return buffers_->of(rank) + element % (2 * kPiece);
  }
  float* Summed(int rank, size_t element) const { return Own(rank, element) + 2 * kPiece; }

  void CopyIn(std::vector<TensorTableEntry>& entries, Range piece) {
    for (int rank = 0; rank < size_; ++rank)
      if (rank != rank_)
        Visit(entries, Segment(piece, rank),
              [&](const float* in, float*, size_t element, size_t count) {
                StoreFloats(in, count, Own(rank_, element));
              });
  }

  void Sum(std::vector<TensorTableEntry>& entries, Range piece, float factor) {
    const auto sum_block = [&](const float* in, float* out, size_t element, size_t count) {
      const auto part = [&](int rank) { return rank == rank_ ? in : Own(rank, element); };
      float sum[kBlock];
      for (int rank = 1; rank < size_; ++rank) {
        const float* before = rank == 1 ? part(0) : sum;
        const float* addend = part(rank);
        const float scale = rank == size_ - 1 ? factor : 1;
        for (size_t i = 0; i < count; ++i)
          sum[i] = (before[i] + addend[i]) * scale;
      }
      StoreFloats(sum, count, out);
      StoreFloats(sum, count, Summed(rank_, element));
    };
    Visit(entries, Segment(piece, rank_),
          [&](const float* in, float* out, size_t element, size_t count) {
            for (size_t done = 0; done < count; done += kBlock)
              sum_block(in + done, out + done, element + done, std::min(kBlock, count - done));
          });
  }

  void CopyOut(std::vector<TensorTableEntry>& entries, Range piece) {
    for (int rank = 0; rank < size_; ++rank)
      if (rank != rank_)
        Visit(entries, Segment(piece, rank),
              [&](const float*, float* out, size_t element, size_t count) {
                StoreFloats(Summed(rank, element), count, out);
              });
  }

  // Calls visit(in, out, element, count) for each tensor's part of a range.
  template <typename Function>
  static void Visit(std::vector<TensorTableEntry>& entries, Range range, Function visit) {
    size_t first = 0; // Of this tensor, among all elements.
    for (auto& entry : entries) {
      const size_t count = entry.tensor->shape().num_elements();
      const size_t begin = std::max(range.begin, first);
      const size_t end = std::min(range.end, first + count);
      if (begin < end)
        visit(static_cast<const float*>(entry.tensor->data()) + (begin - first),
              static_cast<float*>(const_cast<void*>(entry.output->data())) + (begin - first),
              begin, end - begin);
      first += count;
    }
  }

  int rank_ = 0;
  int size_ = 0;                           // 0 before the first sum.
  std::unique_ptr<SharedBuffers> buffers_; // Null where it is Gloo that sums.
};

} // namespace common
} // namespace horovod

#endif // SLIM_HOROVOD_SHARED_MEMORY_ALLREDUCE_H_

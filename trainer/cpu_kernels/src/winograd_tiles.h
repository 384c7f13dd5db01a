// The tiles that Winograd's minimal filtering, see winograd.h, cuts maps into, and where they are
// in memory.

#ifndef TRAINER_CPU_KERNELS_WINOGRAD_TILES_H_
#define TRAINER_CPU_KERNELS_WINOGRAD_TILES_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "winograd_transforms.h"

namespace winograd {

// Channels of a panel of the results, and of the inputs of a filter's gradient.
constexpr int kOutPanel = kProductColumns;
constexpr int kInPanel = kLanes;

// Whether these kernels take less time for a convolution, and its gradients, than others do: it is
// of that kind, and has pixels enough to make up for the transforms of the filter.
constexpr int64_t kLeastPixels = 320;
inline bool Pays(const Shape& shape) {
  return shape.kernel_height == kSize && shape.kernel_width == kSize && shape.stride == 1 &&
         shape.in_channels % kChannelMultiple == 0 && shape.out_channels % kChannelMultiple == 0 &&
         shape.out_pixels() >= kLeastPixels;
}

// The tiles of a convolution's results, over all images.
template <typename T>
class Tiles {
 public:
  explicit Tiles(const Shape& shape)
      : shape_(shape),
        down_(CeilOfRatio(shape.out_height, kOuts<T>)),
        across_(CeilOfRatio(shape.out_width, kOuts<T>)) {}

  int count() const { return shape_.batch * down_ * across_; }

  // The rows that some tiles have a part in, counted over all images.
  Range FindInRows(Range tiles) const {
    return FindRows(tiles, shape_.height, kIns<T>, shape_.top);
  }
  Range FindOutRows(Range tiles) const { return FindRows(tiles, shape_.out_height, kOuts<T>, 0); }

  // Where pixels of a tile begin in memory, row by row: `outside`, where they are not in the map.
  void FindInputs(int tile, const T* inputs, const T* outside, const T** pixels) const {
    Find<kIns<T>>(inputs, shape_.height, shape_.width, shape_.in_channels, tile, shape_.top,
                  shape_.left, outside, pixels);
  }
  template <typename Outputs>  // Const, or not.
  void FindOutputs(int tile, Outputs* outputs, Outputs* outside, Outputs** pixels) const {
    Find<kOuts<T>>(outputs, shape_.out_height, shape_.out_width, shape_.out_channels, tile, 0, 0,
                   outside, pixels);
  }

 private:
  int FindTop(int tile) const { return tile / across_ % down_ * kOuts<T>; }

  Range FindRows(Range tiles, int height, int size, int top) const {
    const int first = tiles.begin, last = tiles.end - 1, per_map = down_ * across_;
    return {first / per_map * height + std::max(0, FindTop(first) - top),
            last / per_map * height + std::min(height, FindTop(last) - top + size)};
  }

  template <int size, typename Map>
  void Find(Map* maps, int height, int width, int channels, int tile, int top, int left,
            Map* outside, Map** pixels) const {
    const int64_t image = tile / (down_ * across_);
    const int first_y = FindTop(tile) - top;
    const int first_x = tile % across_ * kOuts<T> - left;
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) {
        const int y = first_y + i, x = first_x + j;
        const bool is_inside = 0 <= y && y < height && 0 <= x && x < width;
        pixels[i * size + j] =
            is_inside ? maps + ((image * height + y) * width + x) * channels : outside;
      }
  }

  const Shape shape_;
  const int down_, across_;
};

// Distances between points in memory are not powers of 2: those would share a set of the cache.
constexpr int kLine = 16;

}  // namespace winograd

#endif  // TRAINER_CPU_KERNELS_WINOGRAD_TILES_H_

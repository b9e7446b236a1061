// One step of FAdam (arXiv:2405.12807, Algorithm 1) on host memory, behind a plain C interface.
//
// A tensor is passed over twice. The first pass reads g, f and theta and adds up squares; the second reads all
// four arrays and writes f, m and theta. Both compute f_t, sqrt and quotient anew, because that is cheaper than to
// store them, and because nothing has been written when eps_t turns out to be another than the first pass took for
// granted: the pass is then repeated. That makes 40 bytes a float32 parameter, 28 where a tensor fits the cache.
//
// Sums are taken over chunks of fixed size and added in the order of the chunks, so that neither the number of
// threads nor their timing changes a bit of the result.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kChunk = 16384;      // elements of one partial sum; their g, f and theta fit a core's L2
constexpr int64_t kBlock = 1024;       // elements that are converted at a time, where they must be
constexpr int64_t kAlone = 4 * kChunk; // up to this size a tensor is one thread's work
constexpr int64_t kLanes = 16;         // elements of a step of the inner loops of float32
constexpr int64_t kAhead = 512;        // how far ahead of it they ask for memory: a core alone then gets 6% more of it
constexpr double kSafe = 1e-30;       // above it no reciprocal or factor leaves float32's normal range

enum Type : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };
enum Phase : int32_t { kGradient = 1, kMetric = 2, kApply = 4, kRun = 7 };
enum EpsMode : int32_t { kAdaptive, kScaled, kFixed };

} // namespace

extern "C" {

// N tensors. Addresses are unsigned integers, as Python has them. cpu.py declares the same.
struct FAdamCall {
  int64_t num_tensors;                                       // N
  const uint64_t *params, *grads, *momentums, *fims, *steps; // N addresses each; a step is one float32
  const uint8_t *types;                                      // N x 4: of the first four
  const int64_t *sizes;                                      // elements that are here
  const int64_t *numels;                                     // elements that an RMS is over, or null: the same
  const int64_t *offsets;                                    // number of the first element here, or null: 0
  const int64_t *indices;                                    // number of the tensor, or null: place in the list
  double *gradient_sums;                                     // N
  double *metric_sums;                                       // 2 x N
  double lr, beta1, beta2, eps, eps2, clip, rho, weight_decay, grad_scale; // clip 0: none; grad_scale 0: none
  int32_t eps_mode, maximize, stochastic_rounding, threads;
};

// What is needed of the OpenMP runtime that the process has already, or nulls.
struct FAdamThreads {
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned); // GOMP_parallel
  int (*rank)();                                                  // omp_get_thread_num
  int (*threads)();                                               // omp_get_num_threads
};
}

namespace {

// ---- number formats ------------------------------------------------------------------------------------------------

inline uint32_t bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

inline float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float from_bfloat16(uint16_t h) { return from_bits(uint32_t(h) << 16); }

inline uint16_t to_bfloat16(float x) {
  const uint32_t u = bits(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return uint16_t(x != x ? 0x7fc0u : rounded);
}

// `noise` is uniform on 0 ... 65535; infinities and NaN stay what they are.
inline uint16_t to_bfloat16(float x, uint32_t noise) {
  const uint32_t u = bits(x);
  const bool finite = (u & 0x7f800000u) != 0x7f800000u;
  return finite ? uint16_t((u + noise) >> 16) : to_bfloat16(x);
}

inline float from_float16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, rest = h & 0x7fffu;
  const uint32_t normal = (rest << 13) + (112u << 23) + (rest >= 0x7c00u ? 112u << 23 : 0u);
  const uint32_t subnormal = bits(from_bits((rest << 13) + (113u << 23)) - from_bits(113u << 23));
  return from_bits(sign | (rest < 0x400u ? subnormal : normal));
}

inline uint16_t to_float16(float x) {
  const uint32_t u = bits(x), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
  const uint32_t normal = (rest - (112u << 23) + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bits(from_bits(rest) + from_bits(126u << 23)) - (126u << 23);
  const uint32_t large = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return uint16_t(sign | (rest >= 0x47800000u ? large : rest < 0x38800000u ? subnormal : normal));
}

inline double largest(uint8_t type) {
  switch (type) {
  case kFloat32: return FLT_MAX;
  case kBFloat16: return 3.3895313892515355e38;
  case kFloat16: return 65504.0;
  default: return DBL_MAX;
  }
}

template <class T> constexpr uint8_t type_of() { return sizeof(T) == 4 ? kFloat32 : kFloat64; }

// A block as numbers of type T: in place where they are of that type, otherwise in `buffer`.
template <class T> T *load(uint64_t address, uint8_t type, int64_t first, int64_t size, T *buffer) {
  switch (type) {
  case kFloat32: {
    auto *x = reinterpret_cast<float *>(address) + first;
    if (type == type_of<T>()) return reinterpret_cast<T *>(x);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) buffer[i] = T(x[i]);
    return buffer;
  }
  case kFloat64: {
    auto *x = reinterpret_cast<double *>(address) + first;
    if (type == type_of<T>()) return reinterpret_cast<T *>(x);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) buffer[i] = T(x[i]);
    return buffer;
  }
  case kBFloat16: {
    auto *x = reinterpret_cast<const uint16_t *>(address) + first;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) buffer[i] = T(from_bfloat16(x[i]));
    return buffer;
  }
  default: {
    auto *x = reinterpret_cast<const uint16_t *>(address) + first;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) buffer[i] = T(from_float16(x[i]));
    return buffer;
  }
  }
}

// The way back; `bounded`: what is too large becomes the type's largest number, as in metric.store.
template <class T>
void store(uint64_t address, uint8_t type, int64_t first, int64_t size, T *values, bool bounded) {
  if (type == type_of<T>()) return; // load gave the place itself
  if (bounded && largest(type) < std::numeric_limits<T>::max()) {
    const T limit = T(largest(type));
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const T x = values[i] > limit ? limit : values[i];
      values[i] = x < -limit ? -limit : x;
    }
  }
  if (type == kFloat32) {
    auto *x = reinterpret_cast<float *>(address) + first;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) x[i] = float(values[i]);
  } else if (type == kFloat64) {
    auto *x = reinterpret_cast<double *>(address) + first;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) x[i] = double(values[i]);
  } else if (type == kBFloat16) {
    auto *x = reinterpret_cast<uint16_t *>(address) + first;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) x[i] = to_bfloat16(float(values[i]));
  } else {
    auto *x = reinterpret_cast<uint16_t *>(address) + first;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) x[i] = to_float16(float(values[i]));
  }
}

// The random bits are those of metric.stochastic_bfloat16.
inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Elements `offset` ... of a tensor whose `key` stands for it and for the step.
template <class T>
void store_stochastically(uint64_t address, int64_t first, int64_t size, const T *values, uint32_t key,
                          uint64_t offset) {
  auto *x = reinterpret_cast<uint16_t *>(address) + first;
  for (int64_t i = 0; i < size;) {
    // The upper half of an element's number is the same for a whole run of them.
    const uint32_t low = uint32_t(offset + i), other = (uint32_t((offset + i) >> 32) * 0x9e3779b1u) ^ key;
    const int64_t run = std::min<int64_t>(size - i, int64_t(0x100000000u - low));
#pragma omp simd
    for (int64_t k = 0; k < run; ++k)
      x[i + k] = to_bfloat16(float(values[i + k]), mix(mix((low + uint32_t(k)) ^ other) + key) & 0xffffu);
    i += run;
  }
}

// ---- the arithmetic of Algorithm 1 on a block ------------------------------------------------------------------------

// How d = f^rho + eps_t^(2 rho) is inverted. Reciprocal: rho = 1/2 and an eps_t so far from 0 that 1/d needs no care.
enum Way { kReciprocal, kRoot, kPower };

template <class T> struct Metric {
  T beta2_t, rest2_t; // rest2_t = 1 - beta2_t
  T eps_term;         // eps_t^(2 rho)
  T rho;
};

template <class T> inline T fim(const Metric<T> &c, T f, T g) {
  const T x = f * c.beta2_t + (c.rest2_t * g) * g;
  const T limit = std::numeric_limits<T>::max();
  return x > limit ? limit : x; // NaN stays
}

template <Way way, class T> inline T metric(const Metric<T> &c, T f) {
  if (way == kPower) return (c.rho == 1 ? f : std::pow(f, c.rho)) + c.eps_term;
  return std::sqrt(f) + c.eps_term;
}

template <class T> inline T bounded(T x) {
  const T limit = std::numeric_limits<T>::max();
  const T y = x > limit ? limit : x;
  return y < -limit ? -limit : y;
}

struct Sums {
  double g = 0, n = 0, w = 0;
};

// Of one chunk. The sum of g^2 alone has a place of its own: a thread may write the other sums while one behind it
// still adds these up.
struct Partial {
  double gradient = 0;
  Sums sums;
};

// To add up squares in double costs more than to compute them. So they are added up in float where nothing is lost
// by that: in short runs, and again in double if a run's sum is so large or small that squares may have left float's
// range. That is the case for 0, too.
constexpr int64_t kRun32 = 1024;
static_assert(kChunk % kRun32 == 0 && kBlock % kRun32 == 0, "runs must not depend on how a chunk is cut into blocks");

inline bool exact_enough(float sum) { return sum > 1e-28f && sum <= FLT_MAX; }

template <class Sum, class T> Sum squares(const T *g, int64_t size) {
  Sum sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += Sum(g[i]) * Sum(g[i]);
  return sum;
}

double sum_of_squares(const double *g, int64_t size) { return squares<double>(g, size); }

double sum_of_squares(const float *g, int64_t size) {
  double total = 0;
  for (int64_t i = 0; i < size; i += kRun32) {
    const int64_t run = std::min(kRun32, size - i);
    const float sum = squares<float>(g + i, run);
    total += exact_enough(sum) ? double(sum) : squares<double>(g + i, run);
  }
  return total;
}

template <Way way, bool with_w, class T>
Sums metric_squares(const Metric<T> &c, const T *g, const T *f, const T *p, int64_t size) {
  double sum_g = 0, sum_n = 0, sum_w = 0;
#pragma omp simd reduction(+ : sum_g, sum_n, sum_w)
  for (int64_t i = 0; i < size; ++i) {
    const T d = metric<way>(c, fim(c, f[i], g[i]));
    T n, w = 0;
    if (way == kReciprocal) {
      const T r = 1 / d;
      n = g[i] * r;
      if (with_w) w = p[i] * r; // an overflow shows in the sum
    } else {
      n = d == 0 ? T(0) : g[i] / d;
      if (with_w) w = d == 0 ? T(0) : bounded(p[i] / d);
    }
    sum_g += double(g[i]) * double(g[i]);
    sum_n += double(n) * double(n);
    if (with_w) sum_w += double(w) * double(w);
  }
  return {sum_g, sum_n, sum_w};
}

// The same by reciprocals, added up in float.
template <bool with_w>
Sums metric_squares32(const Metric<float> &c, const float *g, const float *f, const float *p, int64_t size) {
  float sum_g[kLanes] = {}, sum_n[kLanes] = {}, sum_w[kLanes] = {};
  const auto add = [&](int64_t i, int64_t k) {
    const float gi = g[i], r = 1 / metric<kReciprocal>(c, fim(c, f[i], gi));
    const float n = gi * r, w = with_w ? p[i] * r : 0;
    sum_g[k] += gi * gi;
    sum_n[k] += n * n;
    sum_w[k] += w * w;
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    __builtin_prefetch(g + i + kAhead);
    __builtin_prefetch(f + i + kAhead);
    if (with_w) __builtin_prefetch(p + i + kAhead);
#pragma omp simd
    for (int64_t k = 0; k < kLanes; ++k) add(i + k, k);
  }
  for (int64_t k = 0; i + k < size; ++k) add(i + k, k);
  Sums sums;
  for (int64_t k = 0; k < kLanes; ++k) sums.g += sum_g[k], sums.n += sum_n[k], sums.w += sum_w[k];
  return sums;
}

template <Way way, bool with_w, class T>
void add_squares(const Metric<T> &c, const T *g, const T *f, const T *p, int64_t size, Sums &sums) {
  for (int64_t i = 0; i < size; i += kRun32) {
    const int64_t run = std::min(kRun32, size - i);
    Sums more;
    bool exact = false;
    if constexpr (way == kReciprocal) {
      more = metric_squares32<with_w>(c, g + i, f + i, p + i, run);
      exact = exact_enough(float(more.g)) && exact_enough(float(more.n)) && (!with_w || exact_enough(float(more.w)));
    }
    if (!exact) more = metric_squares<way, with_w>(c, g + i, f + i, p + i, run);
    sums.g += more.g, sums.n += more.n, sums.w += more.w;
  }
}

template <class T> struct Update {
  T lr, beta1;
  T n_factor, w_factor;           // Reciprocal: the factors of n and w, all in one
  T rest1, weight_decay;          // else: 1 - beta1 with the sign of the gradient, weight decay,
  T n_divisor = 1, w_divisor = 1; // and the divisors of the clip
};

template <Way way, bool with_w, class T>
inline void update_some(const Metric<T> &c, const Update<T> &u, const T *g, T *f, T *m, T *p, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const T fi = fim(c, f[i], g[i]), d = metric<way>(c, fi);
    T mi, change;
    if (way == kReciprocal) {
      const T r = 1 / d;
      mi = change = m[i] * u.beta1 + (g[i] * r) * u.n_factor;
      if (with_w) change += (p[i] * r) * u.w_factor;
    } else {
      const T n = d == 0 ? T(0) : g[i] / d;
      mi = change = m[i] * u.beta1 + (n / u.n_divisor) * u.rest1;
      if (with_w) change += (d == 0 ? T(0) : bounded(p[i] / d) / u.w_divisor) * u.weight_decay;
    }
    f[i] = fi;
    m[i] = mi;
    p[i] -= u.lr * change;
  }
}

template <Way way, bool with_w, class T>
void update(const Metric<T> &c, const Update<T> &u, const T *g, T *f, T *m, T *p, int64_t size) {
  int64_t i = 0;
  if (way == kReciprocal)
    for (; i + kLanes <= size; i += kLanes) {
      __builtin_prefetch(g + i + kAhead);
      __builtin_prefetch(f + i + kAhead, 1);
      __builtin_prefetch(m + i + kAhead, 1);
      __builtin_prefetch(p + i + kAhead, 1);
      update_some<way, with_w>(c, u, g + i, f + i, m + i, p + i, kLanes);
    }
  update_some<way, with_w>(c, u, g + i, f + i, m + i, p + i, size - i);
}

// ---- a tensor --------------------------------------------------------------------------------------------------------

class Barrier {
public:
  void wait(int threads) {
    if (threads == 1) return;
    const unsigned round = round_.load();
    if (arrived_.fetch_add(1) + 1 == threads) {
      arrived_.store(0);
      round_.store(round + 1);
      return;
    }
    for (int spins = 0; round_.load() == round; ++spins)
      if (spins > 4000) std::this_thread::yield();
  }

private:
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

// Some threads that walk through a tensor together; one of them may be all.
struct Team {
  int rank, threads;
  Barrier *barrier;
  void wait() const {
    if (threads > 1) barrier->wait(threads);
  }
};

inline double clip_divisor(double sum, double numel, double clip) {
  const double ratio = std::sqrt(sum / numel) / clip;
  return ratio <= 1 ? 1.0 : ratio; // NaN stays
}

class Tensor {
public:
  Tensor(const FAdamCall &call, int64_t i)
      : call_(call), p_(call.params[i]), g_(call.grads[i]), m_(call.momentums[i]), f_(call.fims[i]),
        types_(call.types + 4 * i), index_(i), size_(call.sizes[i]), chunks_((size_ + kChunk - 1) / kChunk),
        numel_(call.numels ? double(call.numels[i]) : double(size_)), t_(*reinterpret_cast<float *>(call.steps[i])) {}

  int64_t chunks() const { return chunks_; }
  bool wide() const { return std::any_of(types_, types_ + 4, [](uint8_t type) { return type == kFloat64; }); }

  // `partials`: one for each chunk, shared by the team.
  template <class T> void step(int32_t phases, const Team &team, Partial *partials) const {
    // Where an RMS would be multiplied by 0 or not be used, nothing is added up.
    const bool needs_g = call_.eps_mode != kFixed && call_.eps > 0;
    const bool clips = call_.clip > 0, with_w = call_.weight_decay != 0;

    Sums sums;
    double eps_term = epsilon_term(0);
    bool granted = false;
    if (phases == kRun && needs_g && clips && probably_large<T>()) {
      eps_term = std::pow(call_.eps, 2 * call_.rho);
      granted = true;
    } else if (needs_g && (phases & kGradient)) {
      each<T>(team, [&](int64_t chunk, Buffers<T> &b) { partials[chunk].gradient = gradient_squares<T>(chunk, b); });
      team.wait();
      for (int64_t k = 0; k < chunks_; ++k) sums.g += partials[k].gradient;
      eps_term = epsilon_term(sums.g);
    }
    if (phases == kGradient) {
      if (team.rank == 0) call_.gradient_sums[index_] = sums.g;
      return;
    }
    if (!(phases & kGradient)) eps_term = epsilon_term(call_.gradient_sums[index_]);

    if ((phases & kMetric) && clips) {
      sums = metric_sums<T>(team, partials, eps_term, with_w);
      if (granted && epsilon_term(sums.g) != eps_term) {
        eps_term = epsilon_term(sums.g);
        team.wait();
        sums = metric_sums<T>(team, partials, eps_term, with_w);
      }
    }
    if (phases == kMetric) {
      if (team.rank == 0) call_.metric_sums[index_] = sums.n, call_.metric_sums[call_.num_tensors + index_] = sums.w;
      return;
    }
    if (!(phases & kMetric)) sums.n = call_.metric_sums[index_], sums.w = call_.metric_sums[call_.num_tensors + index_];
    apply<T>(team, sums, eps_term, clips, with_w);
  }

private:
  template <class T> struct Buffers {
    alignas(64) T g[kBlock], f[kBlock], p[kBlock], m[kBlock];
  };

  // The chunks of this thread; with several passes every other one goes backwards, to find in the cache what the one
  // before has read last.
  template <class T, class Function> void each(const Team &team, const Function &function, bool backwards = false) const {
    Buffers<T> buffers;
    const int64_t first = chunks_ * team.rank / team.threads, last = chunks_ * (team.rank + 1) / team.threads;
    for (int64_t k = first; k < last; ++k) function(backwards ? last - 1 - (k - first) : k, buffers);
  }

  // Calls function(first element, elements) for the blocks of a chunk, which is one block where nothing is converted.
  template <class T, class Function> void blocks(int64_t chunk, const Function &function) const {
    bool in_place = call_.grad_scale == 0;
    for (int k = 0; k < 4; ++k) in_place = in_place && types_[k] == type_of<T>();
    const int64_t last = std::min(size_, (chunk + 1) * kChunk), length = in_place ? kChunk : kBlock;
    for (int64_t i = chunk * kChunk; i < last; i += length) function(i, std::min(length, last - i));
  }

  template <class T> const T *gradient(int64_t first, int64_t size, T *buffer) const {
    const T *g = load<T>(g_, types_[1], first, size, buffer);
    if (call_.grad_scale == 0) return g;
    const T scale = T(call_.grad_scale);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) buffer[i] = g[i] / scale;
    return buffer;
  }

  template <class T> double gradient_squares(int64_t chunk, Buffers<T> &b) const {
    double sum = 0;
    blocks<T>(chunk, [&](int64_t i, int64_t size) { sum += sum_of_squares(gradient(i, size, b.g), size); });
    return sum;
  }

  // eps_t^(2 rho)
  double epsilon_term(double sum) const {
    double eps = call_.eps;
    const double rms = std::sqrt(sum / numel_);
    if (call_.eps_mode == kAdaptive && !(call_.eps2 * rms >= eps)) eps = call_.eps2 * rms;
    if (call_.eps_mode == kScaled && !(rms >= 1)) eps *= rms;
    return call_.rho == 0.5 ? eps : std::pow(eps, 2 * call_.rho);
  }

  // Whether eps_t will be eps, from a sample; a wrong guess costs time only. A small tensor comes into the cache with
  // the sum of squares of its gradient, so that nothing is gained by guessing.
  template <class T> bool probably_large() const {
    constexpr int64_t places = 16, length = 64;
    if (chunks_ <= 1) return false;
    alignas(64) T buffer[length];
    double sum = 0;
    for (int64_t k = 0; k < places; ++k) {
      const int64_t first = (size_ - length) / (places - 1) * k;
      sum += sum_of_squares(gradient(first, length, buffer), length);
    }
    const double rms = std::sqrt(sum / (places * length));
    return call_.eps_mode == kScaled ? rms >= 1 : call_.eps2 * rms >= call_.eps;
  }

  template <class T> Metric<T> metric_of(double eps_term) const {
    // beta2^t as pow gives it in Python, so that all paths have the same weights.
    const double now = 1 - std::pow(call_.beta2, t_), before = 1 - std::pow(call_.beta2, t_ - 1);
    return {T(call_.beta2 * before / now), T((1 - call_.beta2) / now), T(eps_term), T(call_.rho)};
  }

  bool reciprocal(double eps_term) const { return call_.rho == 0.5 && eps_term >= kSafe && eps_term <= 1; }

  template <Way way, class T> Sums sum_all(const Team &team, Partial *partials, double eps_term, bool with_w) const {
    const Metric<T> c = metric_of<T>(eps_term);
    each<T>(team, [&](int64_t chunk, Buffers<T> &b) {
      Sums sums;
      blocks<T>(chunk, [&](int64_t i, int64_t size) {
        const T *g = gradient(i, size, b.g), *f = load<T>(f_, types_[3], i, size, b.f);
        if (with_w)
          add_squares<way, true>(c, g, f, load<T>(p_, types_[0], i, size, b.p), size, sums);
        else
          add_squares<way, false>(c, g, f, f, size, sums);
      });
      partials[chunk].sums = sums;
    });
    // Every thread adds up all chunks, so that all of them go on with the same numbers. Before the chunks are written
    // again, they have to wait for one another.
    team.wait();
    Sums total;
    for (int64_t k = 0; k < chunks_; ++k) {
      const Sums &sums = partials[k].sums;
      total.g += sums.g, total.n += sums.n, total.w += sums.w;
    }
    return total;
  }

  template <class T> Sums metric_sums(const Team &team, Partial *partials, double eps_term, bool with_w) const {
    if constexpr (sizeof(T) == 4)
      if (reciprocal(eps_term)) {
        const Sums sums = sum_all<kReciprocal, T>(team, partials, eps_term, with_w);
        if (std::isfinite(sums.n) && std::isfinite(sums.w)) return sums;
        team.wait();
      }
    if (call_.rho == 0.5) return sum_all<kRoot, T>(team, partials, eps_term, with_w);
    return sum_all<kPower, T>(team, partials, eps_term, with_w);
  }

  template <Way way, class T>
  void update_all(const Team &team, const Metric<T> &c, const Update<T> &u, bool with_w) const {
    const uint32_t key = mix(mix(uint32_t(t_)) + uint32_t(call_.indices ? call_.indices[index_] : index_));
    const uint64_t offset = call_.offsets ? uint64_t(call_.offsets[index_]) : 0;
    const bool stochastic = call_.stochastic_rounding && types_[0] == kBFloat16;
    const auto one = [&](int64_t chunk, Buffers<T> &b) {
      blocks<T>(chunk, [&](int64_t i, int64_t size) {
        const T *g = gradient(i, size, b.g);
        T *f = load<T>(f_, types_[3], i, size, b.f), *m = load<T>(m_, types_[2], i, size, b.m);
        T *p = load<T>(p_, types_[0], i, size, b.p);
        if (with_w)
          update<way, true>(c, u, g, f, m, p, size);
        else
          update<way, false>(c, u, g, f, m, p, size);
        store(f_, types_[3], i, size, f, true);
        store(m_, types_[2], i, size, m, true);
        if (stochastic)
          store_stochastically(p_, i, size, p, key, offset + uint64_t(i));
        else
          store(p_, types_[0], i, size, p, false);
      });
    };
    each<T>(team, one, true);
  }

  template <class T> void apply(const Team &team, const Sums &sums, double eps_term, bool clips, bool with_w) const {
    const double n_divisor = clips ? clip_divisor(sums.n, numel_, call_.clip) : 1;
    const double w_divisor = clips ? clip_divisor(sums.w, numel_, call_.clip) : 1;
    const double rest1 = call_.maximize ? call_.beta1 - 1 : 1 - call_.beta1;
    const double n_factor = rest1 / n_divisor, w_factor = call_.weight_decay / w_divisor;
    const Metric<T> c = metric_of<T>(eps_term);
    const Update<T> u = {T(call_.lr), T(call_.beta1),        T(n_factor),  T(w_factor),
                         T(rest1),    T(call_.weight_decay), T(n_divisor), T(w_divisor)};
    // Without the sum nothing tells whether theta / d overflows: no |w| is above the root of the sum of all w^2.
    const bool safe = std::fabs(n_factor) >= kSafe && (!with_w || (clips && w_factor >= kSafe && sums.w < 1e76));
    if constexpr (sizeof(T) == 4)
      if (safe && reciprocal(eps_term)) return update_all<kReciprocal>(team, c, u, with_w);
    if (call_.rho == 0.5)
      update_all<kRoot>(team, c, u, with_w);
    else
      update_all<kPower>(team, c, u, with_w);
  }

  const FAdamCall &call_;
  const uint64_t p_, g_, m_, f_;
  const uint8_t *types_;
  const int64_t index_, size_, chunks_;
  const double numel_, t_;
};

// ---- all tensors -----------------------------------------------------------------------------------------------------

class Work {
public:
  Work(const FAdamCall &call, int32_t phases) : call_(call), phases_(phases) {
    int64_t total = 0, partials = 0;
    for (int64_t i = 0; i < call.num_tensors; ++i) {
      total += call.sizes[i];
      if (call.sizes[i] > kAlone) shared_.push_back(i), partials += Tensor(call, i).chunks();
    }
    // A thread is worth waking for 32,768 elements.
    threads_ = int(std::max<int64_t>(1, std::min<int64_t>(call.threads, total / (2 * kChunk))));
    partials_.reset(new Partial[size_t(partials)]);
  }

  int threads() const { return threads_; }

  void run(int rank, int threads) {
    Partial *partials = partials_.get();
    for (const int64_t i : shared_) {
      const Tensor tensor(call_, i);
      step(tensor, {rank, threads, &barrier_}, partials);
      partials += tensor.chunks();
    }
    // Who takes which of the small tensors makes no difference to the result.
    Partial own[kAlone / kChunk];
    for (int64_t i = next_++; i < call_.num_tensors; i = next_++)
      if (call_.sizes[i] <= kAlone) step(Tensor(call_, i), {0, 1, nullptr}, own);
  }

private:
  void step(const Tensor &tensor, const Team &team, Partial *partials) const {
    if (tensor.wide())
      tensor.step<double>(phases_, team, partials);
    else
      tensor.step<float>(phases_, team, partials);
  }

  const FAdamCall &call_;
  const int32_t phases_;
  std::vector<int64_t> shared_;
  std::unique_ptr<Partial[]> partials_;
  Barrier barrier_;
  std::atomic<int64_t> next_{0};
  int threads_ = 1;
};

struct Region {
  Work &work;
  const FAdamThreads &runtime;
};

void enter(void *data) {
  auto &region = *static_cast<Region *>(data);
  region.work.run(region.runtime.rank(), region.runtime.threads());
}

} // namespace

// 0, or 1 if there was no memory, with nothing changed.
extern "C" int fadam_cpu(const FAdamCall *call, int32_t phases, const FAdamThreads *runtime) {
  try {
    Work work(*call, phases);
    const int threads = work.threads();
    if (threads == 1 || !runtime->parallel) {
      work.run(0, 1);
    } else {
      Region region{work, *runtime};
      runtime->parallel(enter, &region, unsigned(threads), 0);
    }
  } catch (const std::exception &) {
    return 1;
  }
  return 0;
}

"use strict";

// Selection and softmax over the stored scores, by the equations of tbkin_core/modeling/attention.py.
// Letters: N layers, H heads, L length (T word pieces, then regions). A row is one query of one head.

const DIRECTIONS = ["text-to-text", "text-to-image", "image-to-text", "image-to-image"];

// Of each rule of tbkin_core/selection.py with a threshold: the least score that a row of `attention` keeps.
// Numbers are in double precision here and rounded to single when they are stored, as the model's are.
const LEAST_SCORES = {
  relative: (attention, row, threshold) => attention.largest[row] + logarithm(threshold),
  probability: (attention, row, threshold) => attention.logSum[row] + logarithm(threshold),
  score: (attention, row, threshold) => threshold,
  topk: (attention, row, threshold) => attention.nthLargest(row, threshold),
};

const logarithm = (number) => Math.fround(Math.log(number));

/** The numbers of little-endian float16 in base64. */
function decodeHalfFloats(base64) {
  const text = atob(base64);
  // There are only 65,536 half floats: each is decoded once.
  const values = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) values[bits] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) values[bits] = sign * fraction * 2 ** -24;
    else values[bits] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  const numbers = new Float32Array(text.length / 2);
  for (let place = 0; place < numbers.length; place++) {
    numbers[place] = values[text.charCodeAt(2 * place) | (text.charCodeAt(2 * place + 1) << 8)];
  }
  return numbers;
}

class Attention {
  /**
   * @param {Float32Array} scores (N, H, L, L) before the softmax, -Infinity where nobody may attend.
   * @param {number[]} shape [N, H, L].
   * @param {number} textLength T.
   * @param {string} scope Which pairs of query and key a selection may drop.
   * @param {number[]|null} layers Layers that select; null means all.
   */
  constructor(scores, [layerCount, headCount, length], textLength, scope, layers) {
    this.scores = scores;
    this.layerCount = layerCount;
    this.headCount = headCount;
    this.length = length;
    this.textLength = textLength;
    this.selecting = Array.from({ length: layerCount }, (_, layer) => !layers || layers.includes(layer));
    const rows = layerCount * headCount * length;
    this.largest = new Float32Array(rows);
    this.logSum = new Float32Array(rows);
    this.exponents = new Float32Array(scores.length); // exp(s - the row's largest)
    this.lowest = Infinity;
    this.highest = -Infinity;
    for (let row = 0; row < rows; row++) {
      const start = row * length;
      let largest = -Infinity;
      for (let key = 0; key < length; key++) {
        const score = scores[start + key];
        if (score > largest) largest = score;
        if (score < this.lowest && score > -Infinity) this.lowest = score;
      }
      let sum = 0;
      for (let key = 0; key < length; key++) {
        const exponent = Math.exp(scores[start + key] - largest);
        this.exponents[start + key] = exponent;
        sum += exponent;
      }
      this.largest[row] = largest;
      this.logSum[row] = largest + Math.log(sum);
      if (largest > this.highest) this.highest = largest;
    }
    // Whether the selection may drop a text or image key of a text or image query.
    const crossModal = scope === "cross-modal";
    this.droppable = {
      "text-to-text": scope === "all",
      "text-to-image": scope === "all" || crossModal || scope === "text-to-image",
      "image-to-text": scope === "all" || crossModal || scope === "image-to-text",
      "image-to-image": scope === "all",
    };
    this.cut = new Float32Array(rows).fill(-Infinity);
    this.sorted = null;
  }

  /** Choose what is kept: in every row the scores from `this.cut[row]` up. Threshold 0 keeps everything. */
  select(rule, threshold) {
    if (!Object.hasOwn(LEAST_SCORES, rule)) throw new Error(`This page knows no selection rule “${rule}”.`);
    const { cut, largest } = this;
    const rowsOfLayer = this.headCount * this.length;
    for (let row = 0; row < cut.length; row++) {
      const selects = threshold !== 0 && this.selecting[Math.floor(row / rowsOfLayer)];
      const least = selects ? LEAST_SCORES[rule](this, row, threshold) : -Infinity;
      cut[row] = Math.min(least, largest[row]); // a row's largest is always kept
    }
  }

  /** The n-th largest score of a row, -Infinity where it has fewer. */
  nthLargest(row, n) {
    const { length } = this;
    if (!this.sorted) {
      this.sorted = this.scores.slice();
      for (let each = 0; each < this.cut.length; each++) {
        this.sorted.subarray(each * length, (each + 1) * length).sort();
      }
    }
    return this.sorted[(row + 1) * length - Math.min(n, length)];
  }

  /** Which parts of a row the selection reaches: [first key, end, direction, least score kept]. */
  parts(row) {
    const query = row % this.length;
    const side = query < this.textLength ? "text" : "image";
    return [
      [0, this.textLength, `${side}-to-text`],
      [this.textLength, this.length, `${side}-to-image`],
    ].map(([start, end, direction]) => [
      start, end, direction, this.droppable[direction] ? this.cut[row] : -Infinity,
    ]);
  }

  /** Entries kept and entries there are, by direction and in "all"; of one layer or head, or all (null). */
  counts(layer, head) {
    const counts = Object.fromEntries([...DIRECTIONS, "all"].map((name) => [name, [0, 0]]));
    this.eachRow(layer, head, (row) => {
      for (const [start, end, direction, least] of this.parts(row)) {
        let kept = 0;
        let total = 0;
        for (let place = row * this.length + start; place < row * this.length + end; place++) {
          const score = this.scores[place];
          if (score > -Infinity) {
            total++;
            if (score >= least) kept++;
          }
        }
        for (const name of [direction, "all"]) {
          counts[name][0] += kept;
          counts[name][1] += total;
        }
      }
    });
    return counts;
  }

  /** (L, L) weights of one layer after the selection; of one head, or the mean of heads (null). */
  weights(layer, head) {
    const { length, exponents, scores } = this;
    const weights = new Float32Array(length * length);
    const share = head === null ? 1 / this.headCount : 1;
    this.eachRow(layer, head, (row) => {
      const parts = this.parts(row);
      const start = row * length;
      let sum = 0;
      for (const [first, end, , least] of parts) {
        for (let key = first; key < end; key++) {
          if (scores[start + key] >= least) sum += exponents[start + key];
        }
      }
      const target = (row % length) * length;
      for (const [first, end, , least] of parts) {
        for (let key = first; key < end; key++) {
          if (scores[start + key] >= least) weights[target + key] += (share * exponents[start + key]) / sum;
        }
      }
    });
    return weights;
  }

  /** Attention rollout (Abnar and Zuidema, 2020): heads averaged, residuals halved, layers multiplied. */
  rollout() {
    const { length } = this;
    let rollout = null;
    for (let layer = 0; layer < this.layerCount; layer++) {
      const step = this.weights(layer, null);
      for (let place = 0; place < step.length; place++) step[place] /= 2;
      for (let place = 0; place < step.length; place += length + 1) step[place] += 0.5;
      if (!rollout) {
        rollout = step;
        continue;
      }
      const product = new Float32Array(length * length);
      for (let query = 0; query < length; query++) {
        for (let middle = 0; middle < length; middle++) {
          const factor = step[query * length + middle];
          if (factor === 0) continue;
          for (let key = 0; key < length; key++) {
            product[query * length + key] += factor * rollout[middle * length + key];
          }
        }
      }
      rollout = product;
    }
    return rollout;
  }

  eachRow(layer, head, visit) {
    for (let each = layer ?? 0; each < (layer === null ? this.layerCount : layer + 1); each++) {
      for (let one = head ?? 0; one < (head === null ? this.headCount : head + 1); one++) {
        const first = (each * this.headCount + one) * this.length;
        for (let row = first; row < first + this.length; row++) visit(row);
      }
    }
  }
}

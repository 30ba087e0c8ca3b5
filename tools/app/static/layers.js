/* Maps as large as an image: scores, and marks that are painted on. Rectangles are {left, top, right, bottom}. */

const SMALLEST = 512; // pixels, the longer side from which on no smaller map is made
const TILE = 128; // pixels, side of what undo keeps
const UNDO_BYTES = 64e6;

/** Values (width x height), and smaller maps of their maxima, each half as large: no mark is lost far out. */
export class Layer {
  constructor(width, height, data) {
    Object.assign(this, { width, height, data, maps: [{ width, height, data }] });
    while (Math.max(width, height) > SMALLEST) {
      [width, height] = [Math.ceil(width / 2), Math.ceil(height / 2)];
      this.maps.push({ width, height, data: new data.constructor(width * height) });
    }
    this.refresh(this.all);
  }

  get all() {
    return { left: 0, top: 0, right: this.width, bottom: this.height };
  }

  /** Bring the smaller maps in line with a rectangle of the values. */
  refresh(rect) {
    this.seen = null; // of `Marks.present`
    let { left, top, right, bottom } = rect;
    for (let k = 1; k < this.maps.length; k++) {
      const { width, height, data } = this.maps[k - 1];
      const target = this.maps[k];
      [left, top, right, bottom] = [left >> 1, top >> 1, (right + 1) >> 1, (bottom + 1) >> 1];
      for (let y = top; y < bottom; y++) {
        const upper = 2 * y * width;
        const lower = Math.min(2 * y + 1, height - 1) * width;
        for (let x = left; x < right; x++) {
          const first = 2 * x;
          const second = Math.min(first + 1, width - 1);
          const above = Math.max(data[upper + first], data[upper + second]);
          const below = Math.max(data[lower + first], data[lower + second]);
          target.data[y * target.width + x] = Math.max(above, below);
        }
      }
    }
  }
}

/** Marks: 0, or the number of a type of defect, for each pixel. Changes lie between `begin` and `end`. */
export class Marks extends Layer {
  constructor(width, height, data = new Uint8Array(width * height)) {
    super(width, height, data);
    this.undos = [];
    this.redos = [];
    this.tiles = null;
  }

  begin() {
    this.tiles = new Map();
  }

  end() {
    if (this.tiles?.size) {
      this.undos.push(this.tiles);
      this.redos = [];
    }
    this.tiles = null;
    const size = (tiles) => [...tiles.values()].reduce((sum, tile) => sum + tile.before.length, 0);
    let kept = this.undos.reduce((sum, tiles) => sum + size(tiles), 0);
    while (kept > UNDO_BYTES && this.undos.length > 1) kept -= size(this.undos.shift());
  }

  /** Take back what was changed since `begin`; returns the rectangle. */
  cancel() {
    const rect = this.tiles?.size ? this.#exchange(this.tiles) : null;
    this.tiles = null;
    return rect;
  }

  undo() {
    return this.#move(this.undos, this.redos);
  }

  redo() {
    return this.#move(this.redos, this.undos);
  }

  #move(from, to) {
    if (!from.length) return null;
    to.push(from.pop());
    return this.#exchange(to.at(-1));
  }

  /** Exchange the content of tiles with what is kept of them. */
  #exchange(tiles) {
    let dirty = null;
    for (const tile of tiles.values()) {
      const now = this.#copy(tile);
      const width = tile.right - tile.left;
      for (let y = tile.top; y < tile.bottom; y++) {
        const start = (y - tile.top) * width;
        this.data.set(tile.before.subarray(start, start + width), y * this.width + tile.left);
      }
      tile.before = now;
      dirty = union(dirty, tile);
    }
    this.refresh(dirty);
    return dirty;
  }

  #copy({ left, top, right, bottom }) {
    const copy = new Uint8Array((right - left) * (bottom - top));
    for (let y = top; y < bottom; y++) {
      const row = y * this.width;
      copy.set(this.data.subarray(row + left, row + right), (y - top) * (right - left));
    }
    return copy;
  }

  /** Keep the tiles of a rectangle that is about to change. */
  #keep(rect) {
    const columns = Math.ceil(this.width / TILE);
    for (let ty = Math.floor(rect.top / TILE); ty * TILE < rect.bottom; ty++) {
      for (let tx = Math.floor(rect.left / TILE); tx * TILE < rect.right; tx++) {
        const key = ty * columns + tx;
        if (this.tiles.has(key)) continue;
        const [left, top] = [tx * TILE, ty * TILE];
        const tile = { left, top, right: Math.min(left + TILE, this.width), bottom: Math.min(top + TILE, this.height) };
        this.tiles.set(key, { ...tile, before: this.#copy(tile) });
      }
    }
  }

  /** Draw a line of a round brush between two pixels {x, y}; returns the changed rectangle, or null. */
  stroke(from, to, size, value) {
    const reach = size / 2;
    const rect = {
      left: Math.max(0, Math.floor(Math.min(from.x, to.x) - reach)),
      top: Math.max(0, Math.floor(Math.min(from.y, to.y) - reach)),
      right: Math.min(this.width, Math.ceil(Math.max(from.x, to.x) + reach) + 1),
      bottom: Math.min(this.height, Math.ceil(Math.max(from.y, to.y) + reach) + 1),
    };
    if (rect.left >= rect.right || rect.top >= rect.bottom) return null;
    this.#keep(rect);
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length = dx * dx + dy * dy || 1;
    for (let y = rect.top; y < rect.bottom; y++) {
      for (let x = rect.left; x < rect.right; x++) {
        const [px, py] = [x - from.x, y - from.y];
        const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
        const [ax, ay] = [px - along * dx, py - along * dy];
        if (ax * ax + ay * ay <= reach * reach) this.data[y * this.width + x] = value;
      }
    }
    this.refresh(rect);
    return rect;
  }

  /** Put other values in place of all; `values` is a function of the index of a pixel. */
  replace(values) {
    this.begin();
    this.#keep(this.all);
    for (let i = 0; i < this.data.length; i++) this.data[i] = values(i, this.data[i]);
    this.refresh(this.all);
    this.end();
  }

  /** The numbers of the types that are marked. */
  get present() {
    if (!this.seen) {
      this.seen = new Uint8Array(256);
      for (let i = 0; i < this.data.length; i++) this.seen[this.data[i]] = 1;
    }
    return [...this.seen.keys()].filter((value) => value && this.seen[value]);
  }

  /** The marks of one type as a PGM file, 0 and 255: no canvas, whose pixels some browsers disturb. */
  asFile(value) {
    const bytes = new Uint8Array(this.data.length);
    for (let i = 0; i < bytes.length; i++) if (this.data[i] === value) bytes[i] = 255;
    return new Blob([`P5\n${this.width} ${this.height}\n255\n`, bytes]);
  }
}

/** Mark what run lengths say, row by row, of 0 and 1 in turn, in an array of values. */
export function markRuns(data, runs, value) {
  let at = 0;
  runs.forEach((length, number) => {
    if (number % 2) data.fill(value, at, at + length);
    at += length;
  });
}

export function union(a, b) {
  if (!a || !b) return a ?? b;
  return {
    left: Math.min(a.left, b.left),
    top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right),
    bottom: Math.max(a.bottom, b.bottom),
  };
}

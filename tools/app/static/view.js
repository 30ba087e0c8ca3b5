/* Panes that show one image, and maps over it, at the same place and zoom. */

import { union } from './layers.js';

const LARGEST = 40; // screen pixels of an image pixel
const INSIDE = 0x60; // opacity of what an outline surrounds, of 255
const BORDER = 2; // pixels, width of an outline

/**
 * Panes below `element`, each `<div class="pane" data-pane="NAME">`. `painters[NAME]` is a function of the number of
 * halvings that returns a function from the index of a pixel in such a map to its colour, 0xAABBGGRR; with
 * `painter.outlined` areas of one colour are shown by their border.
 */
export class View {
  constructor(element) {
    this.element = element;
    this.panes = [...element.querySelectorAll('.pane')].map((pane) => {
      const [image, over] = ['image', 'over'].map((name) => {
        const canvas = pane.appendChild(document.createElement('canvas'));
        canvas.className = name;
        return canvas.getContext('2d');
      });
      return { element: pane, name: pane.dataset.pane, image, over };
    });
    this.painters = {};
    this.bitmaps = [];
    this.dirty = null;
    this.isWaiting = false;
    this.tool = null; // {down, move, up, cancel} of one finger or button; without it, it moves the image
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(element);
    for (const { element: pane } of this.panes) this.#listen(pane);
  }

  /** Show an image, {width, height}, by its bitmap; zoom to all of it unless it is of the same size as the last. */
  async open(image, bitmap, painters, keepPlace) {
    this.bitmaps = [bitmap];
    this.painters = painters;
    this.element.style.setProperty('--aspect', Math.min(3, Math.max(0.6, image.width / image.height)));
    const isSame = keepPlace && this.width === image.width && this.height === image.height;
    Object.assign(this, { width: image.width, height: image.height });
    if (isSame) this.redraw();
    else this.fit();
    let [small, width, height] = [bitmap, image.width, image.height];
    while (Math.max(width, height) > 1024) {
      [width, height] = [Math.ceil(width / 2), Math.ceil(height / 2)];
      small = await createImageBitmap(small, { resizeWidth: width, resizeHeight: height, resizeQuality: 'medium' });
      if (this.bitmaps[0] !== bitmap) return;
      this.bitmaps.push(small);
    }
    this.redraw();
  }

  /** Show nothing, until the next image is opened. */
  blank() {
    this.painters = {};
    this.bitmaps = [];
    for (const { image, over } of this.panes) {
      for (const context of [image, over]) context.canvas.width = context.canvas.width; // clears it
    }
  }

  get pane() {
    return this.panes.find(({ element }) => element.clientWidth) ?? this.panes[0];
  }

  resize() {
    for (const { element, image, over } of this.panes) {
      const ratio = devicePixelRatio;
      const [width, height] = [element.clientWidth * ratio, element.clientHeight * ratio].map(Math.round);
      if (image.canvas.width === width && image.canvas.height === height) continue;
      for (const { canvas } of [image, over]) Object.assign(canvas, { width, height });
    }
    if (this.scale === this.fitted) this.fit();
    else this.redraw();
  }

  /** Zoom to the whole image. */
  fit() {
    const { width, height } = this.pane.image.canvas;
    if (!this.width || !width) return;
    this.scale = this.fitted = Math.min(width / this.width, height / this.height, LARGEST);
    this.x = (width - this.width * this.scale) / 2;
    this.y = (height - this.height * this.scale) / 2;
    this.redraw();
  }

  /** Zoom so that an image pixel has `scale` screen pixels; the place {x, y} of the canvas stays. */
  zoom(scale, at) {
    const { width, height } = this.pane.image.canvas;
    const { x, y } = at ?? { x: width / 2, y: height / 2 };
    scale = Math.min(LARGEST, Math.max(Math.min(this.fitted, 1) / 2, scale));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.redraw();
  }

  /** Bring a box [left, top, width, height] of the image into the middle. */
  show([left, top, width, height]) {
    const canvas = this.pane.image.canvas;
    const scale = Math.min(canvas.width / width, canvas.height / height) / 4;
    this.scale = Math.min(8, Math.max(this.fitted, scale));
    this.x = canvas.width / 2 - (left + width / 2) * this.scale;
    this.y = canvas.height / 2 - (top + height / 2) * this.scale;
    this.redraw();
  }

  /** Image pixel at an event, with its middle at whole numbers. */
  pixel(event) {
    const { x, y } = this.place(event);
    return { x: (x - this.x) / this.scale - 0.5, y: (y - this.y) / this.scale - 0.5 };
  }

  /** Canvas pixel at an event. */
  place(event) {
    const box = event.target.closest('.pane').getBoundingClientRect();
    return { x: (event.clientX - box.left) * devicePixelRatio, y: (event.clientY - box.top) * devicePixelRatio };
  }

  /** Draw anew before the next frame: the maps in a rectangle of the image, or all. */
  redraw(rect = null) {
    if (this.isWaiting) {
      this.dirty = this.dirty && rect ? union(this.dirty, rect) : null;
      return;
    }
    this.dirty = rect;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      if (!this.bitmaps.length) return;
      for (const pane of this.panes) {
        if (!pane.image.canvas.width) continue;
        if (!this.dirty) this.#drawImage(pane);
        this.#drawMap(pane);
      }
    });
  }

  #drawImage({ name, image }) {
    const { width, height } = image.canvas;
    image.setTransform(1, 0, 0, 1, 0, 0);
    image.clearRect(0, 0, width, height);
    if (this.painters[name]?.covers) return;
    const k = Math.min(this.bitmaps.length - 1, Math.max(0, Math.floor(-Math.log2(this.scale))));
    const bitmap = this.bitmaps[k];
    image.setTransform(this.scale, 0, 0, this.scale, this.x, this.y);
    image.imageSmoothingEnabled = this.scale < 1;
    image.drawImage(bitmap, 0, 0, this.width, this.height);
  }

  #drawMap({ name, over }) {
    const canvas = over.canvas;
    const painter = this.painters[name];
    if (!painter) return over.clearRect(0, 0, canvas.width, canvas.height);
    const area = { left: 0, top: 0, right: canvas.width, bottom: canvas.height };
    if (this.dirty) {
      const [x, y] = [(v) => v * this.scale + this.x, (v) => v * this.scale + this.y];
      area.left = Math.max(0, Math.floor(x(this.dirty.left)) - 2 * BORDER);
      area.top = Math.max(0, Math.floor(y(this.dirty.top)) - 2 * BORDER);
      area.right = Math.min(canvas.width, Math.ceil(x(this.dirty.right)) + 2 * BORDER);
      area.bottom = Math.min(canvas.height, Math.ceil(y(this.dirty.bottom)) + 2 * BORDER);
    }
    const [columns, rows] = [area.right - area.left, area.bottom - area.top];
    if (columns <= 0 || rows <= 0) return;
    const k = Math.min(painter.halvings, Math.max(0, Math.floor(-Math.log2(this.scale))));
    const [width, step] = [Math.ceil(this.width / 2 ** k), 1 / this.scale / 2 ** k];
    const height = Math.ceil(this.height / 2 ** k);
    const content = new ImageData(columns, rows);
    const pixels = new Uint32Array(content.data.buffer);
    const colour = painter(k);
    const places = Int32Array.from({ length: columns }, (_, i) => Math.floor((area.left + i + 0.5 - this.x) * step));
    for (let j = 0; j < rows; j++) {
      const row = Math.floor((area.top + j + 0.5 - this.y) * step);
      if (row < 0 || row >= height) continue;
      for (let i = 0; i < columns; i++) {
        const column = places[i];
        if (column >= 0 && column < width) pixels[j * columns + i] = colour(row * width + column);
      }
    }
    if (painter.outlined) outline(pixels, columns, rows);
    // the outline at the border of a part is not to be trusted
    const edge = (at, end) => (at === end ? 0 : BORDER);
    const [cutX, cutY] = [edge(area.left, 0), edge(area.top, 0)];
    const keptX = columns - cutX - edge(area.right, canvas.width);
    const keptY = rows - cutY - edge(area.bottom, canvas.height);
    over.putImageData(content, area.left, area.top, cutX, cutY, keptX, keptY);
  }

  #listen(pane) {
    pane.addEventListener('wheel', (event) => {
      event.preventDefault();
      this.zoom(this.scale * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), this.place(event));
    }, { passive: false });
    pane.addEventListener('contextmenu', (event) => event.preventDefault());
    pane.addEventListener('pointerdown', (event) => {
      pane.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.place(event));
      const paints = this.tool && this.pointers.size === 1 && event.button === 0 && !this.isMoving;
      if (this.isPainting && !paints) this.tool.cancel();
      this.isPainting = paints;
      if (paints) this.tool.down(this.pixel(event));
    });
    pane.addEventListener('pointermove', (event) => {
      if (!this.pointers.has(event.pointerId)) return;
      if (this.isPainting) {
        const events = event.getCoalescedEvents?.() ?? [];
        for (const part of events.length ? events : [event]) this.tool.move(this.pixel({ ...plain(part), target: pane }));
      } else {
        this.#move(event);
      }
      this.pointers.set(event.pointerId, this.place(event));
    });
    const leave = (event) => {
      if (!this.pointers.delete(event.pointerId) || !this.isPainting) return;
      this.isPainting = false;
      if (event.type === 'pointerup') this.tool.up();
      else this.tool.cancel();
    };
    pane.addEventListener('pointerup', leave);
    pane.addEventListener('pointercancel', leave);
  }

  /** Move the image with one pointer, zoom with two. */
  #move(event) {
    const [before, now] = [this.pointers.get(event.pointerId), this.place(event)];
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const distance = (p) => Math.hypot(p.x - other.x, p.y - other.y) || 1;
      this.zoom((this.scale * distance(now)) / distance(before), other);
    } else {
      this.x += now.x - before.x;
      this.y += now.y - before.y;
      this.redraw();
    }
  }
}

const plain = ({ clientX, clientY }) => ({ clientX, clientY });

/** Let the inside of areas of one colour be seen through. */
function outline(pixels, columns, rows) {
  const whole = pixels.slice();
  for (let y = 0; y < rows; y++) {
    const [up, down] = [Math.min(y, BORDER) * columns, Math.min(rows - 1 - y, BORDER) * columns];
    for (let x = 0; x < columns; x++) {
      const i = y * columns + x;
      const colour = whole[i];
      if (!colour || whole[i - up] !== colour || whole[i + down] !== colour) continue;
      const [left, right] = [Math.min(x, BORDER), Math.min(columns - 1 - x, BORDER)];
      if (whole[i - left] === colour && whole[i + right] === colour) pixels[i] = ((INSIDE << 24) | (colour & 0xffffff)) >>> 0;
    }
  }
}

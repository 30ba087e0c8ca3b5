/* The page: supports to paint, queries with their answers, and what is taken home. */

import { ask, cutOf, follow, form, levels } from './api.js';
import { Layer, Marks, markRuns } from './layers.js';
import { View } from './view.js';

// colours that colour-blind people tell apart (Okabe and Ito)
const COLOURS = ['#d55e00', '#0072b2', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#f0e442', '#808080'];
const LARGEST_BRUSH = 400; // pixels
const NARROW = 760; // pixels, as in style.css
const MOST_ROWS = 200; // of the table of defects
const HEARTBEAT = 60e3; // milliseconds; sessions that nobody asks for may be dropped

const $ = (selector, within = document) => within.querySelector(selector);
const state = {
  types: [], // {id, name}: of defects, by the number that marks have
  type: 0, // the number that the brush paints
  supports: [], // {picture, marks, normal, corrected}: marks are null until the image was opened
  queries: [], // {picture, result}
  taught: [], // {name, loaded}
  selected: null, // one of the supports or queries
  thresholds: {}, // by type, where moved
  shown: '', // type whose score and mask are shown
  layers: null, // by type, of the query that is open, once they have come
  tool: 'brush',
  busy: false,
};
const editor = new View($('#editor .panes'));
const viewer = new View($('#result .panes'));
const ring = editor.pane.element.appendChild(document.createElement('div'));

/* ---- messages, progress, and work in order ---- */

function tell(text, kind = 'error') {
  const line = make('p', { className: kind, textContent: text });
  const close = make('button', { textContent: 'Close', onclick: () => line.remove() });
  line.append(close);
  $('#messages').append(line);
  while ($('#messages').children.length > 4) $('#messages').firstChild.remove();
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function showProgress(text, done, total) {
  $('#progress').hidden = !text;
  $('#progress span').textContent = text;
  const bar = $('#progress progress');
  if (total) Object.assign(bar, { max: total, value: done });
  else bar.removeAttribute('value');
}

/** Do one thing at a time; what goes wrong is told, and the page lives on. */
async function work(action) {
  if (state.busy) return tell('Something is still running. Wait for it, or stop it.', 'warning');
  state.busy = true;
  state.stopped = false;
  drawLists();
  try {
    await action();
  } catch (error) {
    tell(error.message);
    if (!(error instanceof TypeError || error instanceof RangeError)) return;
    throw error; // a fault of the page itself
  } finally {
    state.busy = false;
    showProgress('');
    drawLists();
  }
}

/** Follow the job that was just started; returns whether it came to its end. */
async function finishJob() {
  const seen = new Map(state.queries.map((query) => [query, query.result]));
  const { job } = await follow(({ job, results }) => {
    takeResults(results);
    const verbs = { teach: 'Teaching', segment: 'Segmenting', pack: 'Packing', load: 'Loading' };
    const count = job.total > 1 ? `, ${job.done} of ${job.total} done` : '';
    const windows = job.windows ? `, ${job.windows} windows seen` : '';
    const what = job.state === 'waiting' ? 'Waiting for other users' : `${verbs[job.kind]} ${job.note.replace(/^teaching /, '')}`;
    showProgress(`${what}${count}${windows}`, job.done, job.total > 1 ? job.total : 0);
    drawLists();
    const query = state.selected;
    if (state.queries.includes(query) && query.result !== seen.get(query)) {
      seen.set(query, query.result);
      open(query).catch((error) => tell(error.message));
    }
  });
  for (const text of job.warnings) tell(text, 'warning');
  for (const text of [...job.faults, job.error]) if (text) tell(text);
  return job.state === 'done';
}

function takeResults(results) {
  const byId = new Map(results.map((result) => [result.id, result]));
  for (const query of state.queries) {
    const now = byId.get(query.picture.id) ?? null;
    if (JSON.stringify(now) !== JSON.stringify(query.result)) query.result = now;
  }
}

/* ---- uploads ---- */

/** Upload files one by one; `take` gets each picture. */
async function upload(files, take) {
  let number = 0;
  for (const file of files) {
    if (state.stopped) break;
    showProgress(`Uploading ${file.name}`, number++, files.length);
    try {
      const { pictures, warnings } = await ask('POST', 'images', { body: form([['images', file, file.name]]) });
      for (const text of warnings) tell(text, 'warning');
      take(pictures[0]);
      drawLists();
    } catch (error) {
      tell(`${file.name}: ${error.message.replace(`${file.name}: `, '')}`);
    }
  }
}

function addSupports(files, normal) {
  return work(async () => {
    let first = null;
    await upload(files, (picture) => {
      const support = { picture, marks: null, normal, corrected: false };
      state.supports.push(support);
      first ??= support;
    });
    if (first) await choose(first);
  });
}

function addQueries(files) {
  return work(async () => {
    let first = null;
    await upload(files, (picture) => {
      state.queries.push({ picture, result: null });
      first ??= state.queries.at(-1);
    });
    if (first) await choose(first);
    if (!state.stopped) await segment();
  });
}

/* ---- teaching and segmenting ---- */

async function segment() {
  const left = state.queries.filter((query) => !query.result);
  if (!left.length || !state.taught.length) return;
  await ask('POST', 'segment', { body: form(left.map(({ picture }) => ['images', picture.id])) });
  await finishJob();
}

async function teach() {
  const fields = [];
  for (const support of state.supports) {
    const present = support.normal ? [] : (support.marks?.present ?? []);
    // whoever corrects an answer has looked at every type: one that is not marked is not there
    const types = support.corrected && present.length ? usedTypes() : present;
    for (const id of types) {
      fields.push(['images', support.picture.id], ['types', nameOf(id)]);
      fields.push(['masks', support.marks.asFile(id), 'mask.pgm']);
    }
    if (!present.length && (support.normal || support.corrected)) fields.push(['normals', support.picture.id]);
    else if (!present.length) {
      await choose(support);
      throw new Error(`${support.picture.name}: nothing is marked. Paint over the defect, or tick "No defect here".`);
    }
  }
  if (!fields.length) throw new Error('Add an image that shows the defect, and paint over it.');
  await ask('POST', 'teach', { body: form(fields) });
  const isDone = await finishJob();
  state.taught = (await ask('GET', 'session')).types;
  for (const { name } of state.taught) typeNamed(name);
  if (!isDone || state.stopped) return;
  const query = state.selected?.corrected && state.queries.find((q) => q.picture.id === state.selected.picture.id);
  state.thresholds = {};
  if (query || state.queries.length) await open(query || state.queries[0]);
  await segment();
}

/** The types that are marked anywhere. */
function usedTypes() {
  const used = new Set(state.supports.flatMap(({ marks, normal }) => (normal ? [] : (marks?.present ?? []))));
  return state.types.map(({ id }) => id).filter((id) => used.has(id));
}

function typeNamed(name) {
  let type = state.types.find((known) => known.name === name);
  if (!type) {
    const id = Math.max(0, ...state.types.map((known) => known.id)) + 1;
    if (id > 255) throw new Error('There are too many types of defects. Start over.');
    type = { id, name };
    state.types.push(type);
  }
  state.type ||= type.id;
  return type.id;
}

const nameOf = (id) => state.types.find((type) => type.id === id).name;
const colourOf = (id) => COLOURS[(id - 1) % COLOURS.length];
const pixelColour = (id) => (0xff000000 | parseInt(colourOf(id).slice(1).match(/../g).reverse().join(''), 16)) >>> 0;

/* ---- the image that is open ---- */

async function bitmapOf(picture) {
  const response = await fetch(`api/images/${picture.id}`);
  if (!response.ok) throw new Error(`${picture.name} is not there any more. Add it again.`);
  return createImageBitmap(await response.blob());
}

async function open(item) {
  state.selected = item;
  const isSupport = state.supports.includes(item);
  if (!isSupport && item.result && !(state.shown in item.result.types)) state.shown = Object.keys(item.result.types)[0];
  showWork(isSupport ? 'editor' : 'result');
  state.layers = null; // those of another image are not to be taken for its own
  (isSupport ? editor : viewer).blank();
  if (!isSupport) drawResult();
  drawLists();
  const bitmap = await bitmapOf(item.picture);
  if (state.selected !== item) return;
  if (isSupport) await openSupport(item, bitmap);
  else await openQuery(item, bitmap);
}

function showWork(name) {
  for (const section of $('#work').children) section.hidden = section.id !== name;
  document.body.classList.toggle('empty', name === 'welcome');
}

async function openSupport(item, bitmap) {
  const { width, height } = item.picture;
  item.marks ??= new Marks(width, height);
  if (!state.types.length) typeNamed('defect');
  const painter = (k) => {
    const { data } = item.marks.maps[k];
    const colours = Uint32Array.from({ length: 256 }, (_, id) => (id ? pixelColour(id) : 0));
    return (i) => colours[data[i]];
  };
  Object.assign(painter, { outlined: true, halvings: item.marks.maps.length - 1 });
  drawEditor();
  await editor.open(item.picture, bitmap, { marks: painter });
}

function drawEditor() {
  const { picture, corrected, normal } = state.selected;
  const note = corrected ? 'Correct the marks, then teach again: the image joins the examples.' : 'Paint over the defect.';
  $('#editor .title b').textContent = picture.name;
  $('#editor .title span').textContent = normal ? 'An image without defect.' : note;
  $('#normal').checked = normal;
  editor.tool = state.tool === 'hand' || normal ? null : brush;
  for (const button of document.querySelectorAll('[data-tool]')) button.ariaPressed = button.dataset.tool === state.tool;
  for (const control of document.querySelectorAll('#editor [data-do=undo], #editor [data-do=redo], #editor [data-do=clear]')) control.disabled = normal;
  $('#types').replaceChildren(...state.types.map(typeChip), make('button', { textContent: 'Add type', onclick: addType }));
  editor.redraw();
}

function typeChip({ id, name }) {
  const swatch = make('i');
  swatch.style.background = colourOf(id);
  const radio = make('input', { type: 'radio', name: 'type', checked: id === state.type, ariaLabel: name });
  radio.onchange = () => { state.type = id; state.tool = 'brush'; drawEditor(); };
  const text = make('input', { type: 'text', value: name, maxLength: 60, ariaLabel: 'Name of the type' });
  text.onchange = () => {
    const wanted = text.value.trim().replace(/[/\\]/g, '_'); // as files are named
    const isTaken = state.types.some((type) => type.id !== id && type.name === wanted);
    if (wanted && !isTaken) state.types.find((type) => type.id === id).name = wanted;
    else tell(isTaken ? `There is a type "${wanted}" already.` : 'A type needs a name.', 'warning');
    drawEditor();
  };
  const remove = make('button', { className: 'remove', textContent: '×', title: `Remove ${name}`, onclick: () => removeType(id) });
  const parts = state.types.length > 1 ? [radio, swatch, text, remove] : [radio, swatch, text];
  return make('span', { className: id === state.type ? 'type chosen' : 'type' }, ...parts);
}

function addType() {
  let number = state.types.length + 1;
  while (state.types.some(({ name }) => name === `defect ${number}`)) number++;
  state.type = typeNamed(`defect ${number}`);
  drawEditor();
  $('#types .chosen input[type=text]').select();
}

async function removeType(id) {
  if (!confirm(`Remove ${nameOf(id)}, its marks and what it has taught?`)) return;
  await work(async () => {
    const name = nameOf(id);
    if (state.taught.some((type) => type.name === name)) {
      await ask('DELETE', `memory?${new URLSearchParams({ type: name })}`);
      state.taught = (await ask('GET', 'session')).types;
      delete state.thresholds[name];
      takeResults([]);
    }
    for (const { marks } of state.supports) marks?.replace((i, value) => (value === id ? 0 : value));
    state.types = state.types.filter((type) => type.id !== id);
    state.type = state.types[0].id;
    drawEditor();
  });
}

/** What the brush and the eraser do with one finger or the left button. */
const brush = {
  down(at) {
    state.selected.marks.begin();
    this.last = at;
    this.move(at);
  },
  move(at) {
    const value = state.tool === 'eraser' ? 0 : state.type;
    const round = brushSize() < 4 ? ({ x, y }) => ({ x: Math.round(x), y: Math.round(y) }) : (place) => place;
    const rect = state.selected.marks.stroke(round(this.last), round(at), brushSize(), value);
    this.last = at;
    if (rect) editor.redraw(rect);
  },
  up() {
    state.selected.marks.end();
    drawLists();
  },
  cancel() {
    const rect = state.selected.marks.cancel();
    if (rect) editor.redraw(rect);
  },
};

const brushSize = () => Math.max(1, Math.round(LARGEST_BRUSH ** $('#size').valueAsNumber));

function drawRing(event) {
  $('#size + output').textContent = `${brushSize()} px`;
  const side = `${(brushSize() * editor.scale) / devicePixelRatio}px`;
  Object.assign(ring.style, { width: side, height: side });
  if (!event) return;
  ring.hidden = !editor.tool || event.pointerType === 'touch' || event.type === 'pointerleave';
  const { x, y } = editor.place(event);
  Object.assign(ring.style, { left: `${x / devicePixelRatio}px`, top: `${y / devicePixelRatio}px` });
}

/* ---- the answer that is open ---- */

const threshold = (type) => state.thresholds[type] ?? state.selected.result.types[type].threshold;

async function openQuery(item, bitmap) {
  const { picture, result } = item;
  const names = result ? Object.keys(result.types) : [];
  const layers = {};
  for (const name of names) layers[name] = new Layer(picture.width, picture.height, await levels(picture.id, name));
  if (state.selected !== item || item.result !== result) return;
  state.layers = result && layers;
  for (const name of names) typeNamed(name);
  drawResult();
  await viewer.open(picture, bitmap, result ? answerPainters(layers) : {}, true);
}

/** For the pixel of a map, the number of the type that is furthest above its threshold, or 0. */
function labels(layers, k) {
  const all = Object.keys(layers).map((name) => ({ data: layers[name].maps[k].data, cut: cutOf(threshold(name)), id: typeNamed(name) }));
  return (i) => {
    let [best, id] = [0, 0];
    for (const type of all) {
      const above = type.data[i] - type.cut;
      if (above > best) [best, id] = [above, type.id];
    }
    return id;
  };
}

function answerPainters(layers) {
  const halvings = Object.values(layers)[0].maps.length - 1;
  const overlay = (k) => {
    const label = labels(layers, k);
    const colours = Uint32Array.from({ length: 256 }, (_, id) => (id ? pixelColour(id) : 0));
    return (i) => colours[label(i)];
  };
  const score = (k) => {
    const { data } = layers[state.shown].maps[k];
    return (i) => HEAT[data[i] >> 8];
  };
  const mask = (k) => {
    const { data } = layers[state.shown].maps[k];
    const cut = cutOf(threshold(state.shown));
    return (i) => (data[i] > cut ? 0xffffffff : 0xff000000);
  };
  for (const painter of [overlay, score, mask]) Object.assign(painter, { halvings, covers: painter !== overlay });
  overlay.outlined = true;
  return { overlay, score, mask };
}

// black, blue, green, yellow, white: in the order of their lightness
const HEAT = Uint32Array.from({ length: 256 }, (_, level) => {
  const stops = [[0, 0, 0], [40, 40, 140], [20, 140, 130], [220, 200, 40], [255, 255, 255]];
  const [at, share] = [Math.min(3, Math.floor(level / 64)), (level % 64) / 64];
  const [red, green, blue] = stops[at].map((value, c) => Math.round(value + share * (stops[at + 1][c] - value)));
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
});

function drawResult() {
  const { picture, result } = state.selected;
  const facts = result && `${picture.width} × ${picture.height} pixels, ${result.seconds.toFixed(1)} s, ${result.windows} windows`;
  $('#result .title b').textContent = picture.name;
  $('#result .title span').textContent = facts ?? (state.taught.length ? 'Not segmented yet.' : 'Teach a defect, and the answer appears here.');
  for (const part of $('#result').querySelectorAll('.tools > *, .scroll')) part.hidden = !result && !part.matches('.zoom');
  for (const { element, name } of viewer.panes) element.hidden = !(result ? shownPanes().has(name) : name === 'overlay');
  if (!result) return;
  const names = Object.keys(result.types);
  $('#which').hidden = names.length < 2;
  $('#which select').replaceChildren(...names.map((name) => new Option(name, name, false, name === state.shown)));
  for (const button of document.querySelectorAll('[data-show]')) button.ariaPressed = shownPanes().has(button.dataset.show);
  $('#threshold').value = threshold(state.shown);
  drawThreshold();
}

/** What depends on the threshold. */
function drawThreshold() {
  const value = threshold(state.shown);
  $('#threshold + output').textContent = value.toFixed(3);
  $('#correct').disabled = !state.layers;
  $('#reset').disabled = !(state.shown in state.thresholds);
  viewer.redraw();
  drawQueries();
  drawDownloads();
  clearTimeout(drawThreshold.timer);
  drawThreshold.timer = setTimeout(drawTable, 150);
}

const moved = (more = {}) => {
  const all = new URLSearchParams(more);
  for (const [name, value] of Object.entries(state.thresholds)) all.append('threshold', `${name}=${value}`);
  return all;
};

async function drawTable() {
  const query = state.selected;
  if (!query?.result) return;
  drawTable.running?.abort();
  drawTable.running = new AbortController();
  try {
    const table = await ask('GET', `results/${query.picture.id}/defects?${moved()}`, { signal: drawTable.running.signal });
    if (state.selected === query) fillTable(table);
  } catch (error) {
    if (error.name !== 'AbortError') fillTable({ columns: ['type'], rows: [], note: error.message });
  }
}

/* ---- lists ---- */

/** The line of a picture in its list, made once and brought up to date. */
function pictureItem(item, list, caption, kind) {
  const { name, id } = item.picture;
  if (!item.line) {
    const image = make('img', { src: `api/images/${id}?thumbnail=true`, alt: '' });
    const short = name.length > 10 ? `…${name.slice(-8)}` : name;
    const button = make('button', { className: 'open', onclick: () => choose(item) }, image, make('span', { textContent: short, title: name }), make('span'));
    const remove = make('button', { className: 'remove', textContent: '×', title: `Remove ${name}`, onclick: () => removePicture(item, list) });
    item.line = make('li', {}, button, remove);
  }
  const [button, remove] = item.line.children;
  button.ariaPressed = state.selected === item;
  Object.assign(button.lastChild, { textContent: caption, className: kind });
  remove.disabled = state.busy;
  return item.line;
}

function fillList(list, lines) {
  const isSame = list.children.length === lines.length && lines.every((line, number) => list.children[number] === line);
  if (!isSame) list.replaceChildren(...lines);
}

/** Open what the user has chosen, and bring it into view. */
async function choose(item) {
  try {
    await open(item);
  } catch (error) {
    tell(error.message);
  }
  if (innerWidth <= NARROW) $('#work').scrollIntoView();
}

function removePicture(item, list) {
  return work(async () => {
    state[list] = state[list].filter((other) => other !== item);
    const isUsed = [...state.supports, ...state.queries].some(({ picture }) => picture.id === item.picture.id);
    if (!isUsed) await ask('DELETE', `images/${item.picture.id}`);
    if (state.selected !== item) return;
    state.selected = null;
    showWork('welcome');
  });
}

function drawQueries() {
  const items = state.queries.map((item) => {
    if (!item.result) return pictureItem(item, 'queries', 'not yet', '');
    const found = Object.entries(item.result.types).filter(([name, { score, threshold }]) =>
      Math.round(score * 65535) > cutOf(state.thresholds[name] ?? threshold));
    const greatest = Math.max(...Object.values(item.result.types).map(({ score }) => score));
    return pictureItem(item, 'queries', `${found.length ? 'defect' : 'none'} ${greatest.toFixed(2)}`, found.length ? 'found' : 'none');
  });
  fillList($('#queries .pictures'), items);
}

function drawDownloads() {
  const result = state.selected?.result;
  $('#save-mask').href = result ? `api/results/${state.selected.picture.id}/mask?${moved({ type: state.shown })}` : '#';
  $('#csv').href = `api/defects.csv?${moved()}`;
  $('#coco').href = `api/defects.json?${moved()}`;
  $('#memory').href = 'api/memory';
  const some = state.queries.some(({ result }) => result);
  $('#pack').disabled = state.busy || !some;
  for (const link of [$('#csv'), $('#coco')]) link.ariaDisabled = !some;
  $('#memory').ariaDisabled = !state.taught.length;
}

function drawLists() {
  const items = state.supports.map((item) => {
    const types = item.normal ? [] : (item.marks?.present ?? []);
    const caption = item.normal ? 'normal' : types.map(nameOf).join(', ') || (item.corrected ? 'no defect' : 'paint it');
    return pictureItem(item, 'supports', caption, types.length ? 'found' : '');
  });
  fillList($('#supports .pictures'), items);
  drawQueries();
  drawDownloads();
  const loaded = state.taught.filter(({ loaded }) => loaded).map(({ name }) => name);
  const names = state.taught.map(({ name }) => name).join(', ');
  $('#taught').textContent = names && `Taught: ${names}${loaded.length ? ` (from a file: ${loaded.join(', ')})` : ''}`;
  for (const button of document.querySelectorAll('.teach')) {
    button.textContent = state.taught.length ? 'Teach again' : 'Teach';
    button.disabled = state.busy || !state.supports.length;
  }
  const left = state.queries.filter(({ result }) => !result).length;
  $('#segment').hidden = state.busy || !left || !state.taught.length;
  $('#segment').textContent = `Segment ${left}`;
}

const HEADINGS = { number: 'no.', area_pixels: 'area px', area_percent: 'area %', greatest_score: 'greatest', mean_score: 'mean' };
const shortNumber = (value) => (Number.isInteger(value) || value >= 100 ? Math.round(value) : value.toPrecision(3));

function fillTable({ columns, rows, note }) {
  const head = make('tr', {}, ...columns.map((name) => make('th', { textContent: HEADINGS[name] ?? name.replace('_', ' ') })));
  const lines = rows.slice(0, MOST_ROWS).map((cells) => {
    const swatch = make('i');
    swatch.style.background = colourOf(typeNamed(cells[0]));
    const texts = cells.map((value) => (value.toFixed ? shortNumber(value) : value));
    const line = make('tr', { title: 'Show it', onclick: () => viewer.show(cells.slice(2, 6)) }, ...texts.map((textContent) => make('td', { textContent })));
    line.firstChild.prepend(swatch, ' ');
    return line;
  });
  note ??= rows.length ? rows.length > MOST_ROWS && `${rows.length - MOST_ROWS} more are in the downloads.` : 'No defect above the threshold.';
  if (note) lines.push(make('tr', {}, make('td', { colSpan: columns.length, textContent: note })));
  $('#defects').replaceChildren(make('thead', {}, head), make('tbody', {}, ...lines));
}

/* ---- corrections, masks, memories, examples ---- */

/** Have the open answer painted on; it joins the supports. */
async function correct() {
  const { picture } = state.selected;
  let support = state.supports.find((item) => item.picture.id === picture.id);
  const label = labels(state.layers, 0);
  if (!support) {
    support = { picture, marks: new Marks(picture.width, picture.height), normal: false, corrected: true };
    for (let i = 0; i < support.marks.data.length; i++) support.marks.data[i] = label(i);
    support.marks.refresh(support.marks.all);
    state.supports.push(support);
  }
  const { scale, x, y } = viewer;
  await choose(support);
  if (viewer.pane.image.canvas.width === editor.pane.image.canvas.width) Object.assign(editor, { scale, x, y });
  editor.redraw();
}

/** Put what a file marks, {type: run lengths}, in place of the marks of a support. */
function setMarks(support, types) {
  const { width, height } = support.picture;
  const data = new Uint8Array(width * height);
  const isOne = Object.keys(types).length === 1 && types.defect; // a plain mask: of the chosen type
  for (const [name, runs] of Object.entries(types)) markRuns(data, runs, isOne && state.type ? state.type : typeNamed(name));
  support.marks ??= new Marks(width, height);
  support.marks.replace((i) => data[i]);
  support.normal = false;
}

function loadMask(file) {
  return work(async () => {
    const support = state.selected;
    showProgress(`Reading ${file.name}`);
    const { types, warnings } = await ask('POST', `images/${support.picture.id}/marks`, { body: form([['mask', file, file.name]]) });
    for (const text of warnings) tell(text, 'warning');
    setMarks(support, types);
    drawEditor();
  });
}

function loadMemory(file) {
  return work(async () => {
    showProgress(`Loading ${file.name}`);
    await ask('PUT', 'memory', { body: file });
    state.taught = (await ask('GET', 'session')).types;
    for (const type of state.taught) typeNamed(type.name);
    state.thresholds = {};
    takeResults([]);
    drawLists();
    await segment();
  });
}

function takeExample(name) {
  return work(async () => {
    showProgress('Drawing the example');
    const { supports, queries } = await ask('POST', `examples/${name}`);
    state.supports = supports.map((picture) => ({ picture, marks: null, normal: false, corrected: false }));
    state.queries = queries.map((picture) => ({ picture, result: null }));
    state.types = [];
    state.type = 0;
    for (const [number, { types }] of supports.entries()) {
      for (const type of Object.keys(types)) typeNamed(type);
      setMarks(state.supports[number], types);
    }
    await open(state.supports[0]);
    await teach();
  });
}

/** Show again what the server still has, after the page was loaded anew. */
async function restore() {
  const session = await ask('GET', 'session');
  for (const [name, title] of Object.entries(session.examples)) {
    $('#examples').append(make('button', { textContent: title, onclick: () => takeExample(name) }));
  }
  state.taught = session.types;
  for (const { name } of session.types) typeNamed(name);
  const results = new Map(session.results.map((result) => [result.id, result]));
  for (const picture of session.pictures) {
    const [isTaught, normal] = [session.supports, session.normals].map((ids) => ids.includes(picture.id));
    const result = results.get(picture.id) ?? null;
    if (result || !(isTaught || normal)) state.queries.push({ picture, result });
    if (!isTaught && !normal) continue;
    const support = { picture, marks: null, normal: normal && !result, corrected: Boolean(result) };
    const { types } = await ask('GET', `images/${picture.id}/marks`);
    if (Object.keys(types).length) setMarks(support, types);
    state.supports.push(support);
  }
  drawLists();
  const first = state.queries.find(({ result }) => result) ?? state.supports[0] ?? state.queries[0];
  if (first) await open(first);
  if (session.job && ['waiting', 'running'].includes(session.job.state)) {
    await work(async () => {
      if ((await finishJob()) && session.job.kind === 'teach') location.reload();
    });
  }
}

/* ---- what the page listens to ---- */

function listen() {
  const files = (selector, take) => {
    $(selector).onchange = ({ target }) => {
      const chosen = [...target.files];
      target.value = '';
      if (chosen.length) take(chosen);
    };
  };
  files('#add-supports', (chosen) => addSupports(chosen, false));
  files('#add-normals', (chosen) => addSupports(chosen, true));
  files('#add-queries', addQueries);
  files('#load-mask', ([file]) => loadMask(file));
  files('#load-memory', ([file]) => loadMemory(file));
  addEventListener('dragover', (event) => event.preventDefault());
  addEventListener('drop', (event) => event.preventDefault());
  for (const [selector, take] of [['#supports', (chosen) => addSupports(chosen, false)], ['#queries', addQueries]]) {
    const zone = $(selector);
    zone.ondragover = () => zone.classList.add('over');
    zone.ondragleave = () => zone.classList.remove('over');
    zone.ondrop = ({ dataTransfer }) => {
      zone.classList.remove('over');
      take([...dataTransfer.files]);
    };
  }
  for (const button of document.querySelectorAll('.teach')) button.onclick = () => work(teach);
  $('#segment').onclick = () => work(segment);
  $('#stop').onclick = async () => {
    state.stopped = true;
    await ask('DELETE', 'job').catch((error) => tell(error.message));
  };
  $('#restart').onclick = () => {
    if (!confirm('Remove all images, what is taught, and all results?')) return;
    work(async () => {
      await ask('DELETE', 'session');
      location.reload();
    });
  };
  $('#pack').onclick = () => work(async () => {
    await ask('POST', `archive?${moved()}`);
    if (await finishJob()) location.assign('api/archive');
  });
  for (const [view, section] of [[editor, '#editor'], [viewer, '#result']]) {
    for (const button of document.querySelectorAll(`${section} [data-do]`)) button.onclick = () => act(view, button.dataset.do);
  }
  for (const button of document.querySelectorAll('[data-tool]')) button.onclick = () => act(editor, button.dataset.tool);
  $('#size').oninput = () => drawRing();
  for (const type of ['pointermove', 'pointerdown', 'pointerleave']) editor.pane.element.addEventListener(type, drawRing);
  $('#normal').onchange = ({ target }) => {
    state.selected.normal = target.checked;
    drawEditor();
    drawLists();
  };
  $('#threshold').oninput = ({ target }) => {
    state.thresholds[state.shown] = target.valueAsNumber;
    drawThreshold();
  };
  $('#reset').onclick = () => {
    delete state.thresholds[state.shown];
    drawResult();
  };
  $('#opacity').oninput = ({ target }) => {
    for (const canvas of document.querySelectorAll('[data-pane=overlay] .over')) canvas.style.opacity = target.value;
  };
  $('#which select').onchange = ({ target }) => {
    state.shown = target.value;
    drawResult();
  };
  for (const button of document.querySelectorAll('[data-show]')) {
    button.onclick = () => {
      const shown = shownPanes();
      if (!shown.delete(button.dataset.show)) shown.add(button.dataset.show);
      if (shown.size) listen.shown = shown;
      drawResult();
    };
  }
  $('#correct').onclick = () => correct().catch((error) => tell(error.message));
  addEventListener('keydown', onKey);
  addEventListener('keyup', ({ key }) => { if (key === ' ') editor.isMoving = viewer.isMoving = false; });
  addEventListener('beforeunload', (event) => {
    if (state.supports.some(({ marks }) => marks?.undos.length) && !state.taught.length) event.preventDefault();
  });
  setInterval(() => ask('GET', 'job').catch(() => {}), HEARTBEAT);
}

/** The panes that are shown: all, on a narrow screen one, unless chosen otherwise. */
function shownPanes() {
  return new Set(listen.shown ?? (innerWidth > NARROW ? ['overlay', 'score', 'mask'] : ['overlay']));
}

function act(view, name) {
  const marks = state.selected?.marks;
  const steps = {
    fit: () => view.fit(),
    native: () => view.zoom(1),
    in: () => view.zoom(view.scale * 1.5),
    out: () => view.zoom(view.scale / 1.5),
    undo: () => marks.undo(),
    redo: () => marks.redo(),
    clear: () => marks.replace(() => 0),
  };
  if (name in steps) steps[name]();
  else state.tool = name;
  if (view !== editor) return;
  drawEditor();
  drawRing();
  if (['undo', 'redo', 'clear'].includes(name)) drawLists();
}

function onKey(event) {
  if (event.target.matches('input[type=text], select') || !state.selected) return;
  const isEditing = !$('#editor').hidden;
  const view = isEditing ? editor : viewer;
  const keys = { '+': 'in', '-': 'out', 0: 'fit', 1: 'native' };
  if (isEditing) Object.assign(keys, { b: 'brush', e: 'eraser', h: 'hand' });
  const key = event.key.toLowerCase();
  if (isEditing && (event.ctrlKey || event.metaKey) && 'zy'.includes(key)) act(view, key === 'y' || event.shiftKey ? 'redo' : 'undo');
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (key === ' ' && !event.target.matches('button, a')) view.isMoving = true;
  else if (isEditing && '[]'.includes(key)) {
    $('#size').valueAsNumber += key === '[' ? -0.04 : 0.04;
    drawRing();
  } else if (key in keys) act(view, keys[key]);
  else return;
  event.preventDefault();
}

for (const [name, label] of [['overlay', 'Overlay'], ['score', 'Score'], ['mask', 'Mask']]) $(`[data-pane=${name}]`).dataset.label = label;
ring.className = 'ring';
ring.hidden = true;
$('#size').value = 0.5;
showWork('welcome');
listen();
drawRing();
drawLists();
$('[data-pane=overlay] .over').style.opacity = $('#opacity').value;
restore().catch((error) => tell(error.message));

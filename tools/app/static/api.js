/* Requests to the server, and the job that it does for this session. */

const PAUSE = 400; // milliseconds between two questions how far a job is

/** Ask the server, with a body or other options of `fetch`; returns what its JSON holds, or throws an Error with the reason for the user. */
export async function ask(method, path, options = {}) {
  let response;
  try {
    response = await fetch(`api/${path}`, { method, ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server does not answer. Is it still running?');
  }
  if (response.ok) return response.json();
  if (response.status === 413) throw new Error('That is too large for one upload.');
  const detail = await response.json().then((content) => content.detail, () => response.statusText);
  throw new Error(typeof detail === 'string' ? detail : `${response.status} ${response.statusText}`);
}

/** Fields of a multipart request, [name, value, file name?]. */
export function form(fields) {
  const data = new FormData();
  for (const [name, value, file] of fields) data.append(name, value, ...(file ? [file] : []));
  return data;
}

/** Follow the session's job to its end; `tell` gets each state, {job, results}. Returns the last one. */
export async function follow(tell) {
  for (;;) {
    const state = await ask('GET', 'job');
    tell(state);
    if (!state.job || !['waiting', 'running'].includes(state.job.state)) return state;
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

/** The levels of a picture for a type: scores in 16 bits. */
export async function levels(picture, type) {
  const response = await fetch(`api/results/${picture}/score?${new URLSearchParams({ type })}`);
  if (!response.ok) throw new Error('The scores are not there any more. Segment the image again.');
  return new Uint16Array(await response.arrayBuffer());
}

/** The greatest level that is no defect, as the server has it. */
export const cutOf = (threshold) => Math.min(Math.trunc(threshold * 65535), 65534);

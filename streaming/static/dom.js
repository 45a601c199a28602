/** The little that every part of the page needs to know of the document. */

export const $ = (id) => document.getElementById(id);

/** Write only what changed: a live region speaks each writing, and layout is not free. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Say something once to those who do not see the page; the newest news wins. */
export function announce(text) {
  put($("announce"), text);
}

/** `url` made absolute, or null unless it is http(s). */
export function address(url) {
  const { protocol, pathname, search, href } = new URL(url, location.href);
  // Our own files come from wherever this page came from: the installation may have other names.
  if (/^\/episodes\/[\w.-]+$/.test(pathname)) return location.origin + pathname + search;
  return /^https?:$/.test(protocol) ? href : null;
}

/** Go to a link of ours by the name under which this page was reached; the link's own may not work here. */
export function follow(link) {
  const { pathname, hash } = new URL(link);
  location.assign(pathname + hash);
}

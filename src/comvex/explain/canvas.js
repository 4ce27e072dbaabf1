// The picture to choose a patch on. The frame moves at once, here; the server is told which patch it is. The picture's
// element is never replaced while it is clicked on, so that no click is lost.
const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));

function choose(row, column) {
  const patch = { row: clamp(row, props.rows), column: clamp(column, props.columns) };
  if (patch.row === props.value.row && patch.column === props.value.column) return;
  props.value = { ...props.value, ...patch };
  trigger("select");
}

element.addEventListener("click", (event) => {
  const picture = event.target.closest(".cx-patches");
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  choose(
    Math.floor(((event.clientY - box.top) * props.rows) / box.height),
    Math.floor(((event.clientX - box.left) * props.columns) / box.width),
  );
});

element.addEventListener("keydown", (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step || !event.target.closest(".cx-patches")) return;
  event.preventDefault();
  choose(props.value.row + step[0], props.value.column + step[1]);
});

(function () {
  "use strict";
  var form = document.getElementById("gallery-controls");
  if (!form) return;
  var list = document.getElementById("gallery-items");
  var count = document.getElementById("gallery-count");
  var fields = form.elements;
  var items = Array.prototype.slice.call(list.children).map(function (node, place) {
    return {
      node: node, place: place, task: node.dataset.task, kind: node.dataset.kind,
      before: Number(node.dataset.before), after: Number(node.dataset.after),
      text: node.textContent.toLowerCase()
    };
  });
  var orders = {
    listed: function (a, b) { return a.place - b.place; },
    task: function (a, b) { return a.task < b.task ? -1 : a.task > b.task ? 1 : a.place - b.place; },
    lost: function (a, b) { return (a.after - a.before) - (b.after - b.before) || a.place - b.place; },
    gained: function (a, b) { return (b.after - b.before) - (a.after - a.before) || a.place - b.place; }
  };
  function update() {
    var words = fields.search.value.toLowerCase().trim();
    var shown = 0;
    items.forEach(function (item) {
      var fits = (!fields.task.value || item.task === fields.task.value) &&
        (!fields.kind.value || item.kind === fields.kind.value) &&
        (!words || item.text.indexOf(words) !== -1);
      item.node.hidden = !fits;
      if (fits) shown += 1;
    });
    count.textContent = shown + " of the " + items.length + " listed items fit.";
  }
  function sort() {
    items.slice().sort(orders[fields.sort.value]).forEach(function (item) { list.appendChild(item.node); });
  }
  form.addEventListener("input", update);
  fields.sort.addEventListener("change", sort);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  Array.prototype.forEach.call(document.querySelectorAll("[data-filter-task]"), function (link) {
    link.addEventListener("click", function () {
      fields.task.value = link.dataset.filterTask;
      fields.kind.value = link.dataset.filterKind;
      fields.search.value = "";
      update();
    });
  });
  form.hidden = false;
  update();
})();

package dev.pontoon.e2e;

import java.util.LinkedHashMap;
import java.util.Map;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;

@SpringBootApplication
@RestController
public class InventoryApp {
  private final String port;
  private final String host;

  public InventoryApp(
      @Value("${server.port}") String port, @Value("${HOSTNAME:}") String host) {
    this.port = port;
    this.host = host;
  }

  public static void main(String[] args) {
    SpringApplication.run(InventoryApp.class, args);
  }

  /**
   * Says which instance answered: the tests tell the two sides of a split apart by the port, and pods by
   * their names.
   */
  @GetMapping("/stock/{sku}")
  public Map<String, Object> stock(@PathVariable("sku") String sku) {
    Map<String, Object> answer = new LinkedHashMap<>();
    answer.put("sku", sku);
    answer.put("port", port);
    answer.put("host", host);
    answer.put("side", "modern");
    return answer;
  }
}

package dev.pontoon.e2e;

import com.google.gson.Gson;
import com.google.protobuf.StringValue;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A proxyless client on grpc-java: what ../grpc-go does with {@code call}, under the same arguments. It finds the
 * greeters by xDS alone and keeps one channel, so that what it is told of changes is seen in its calls.
 */
public final class Caller {
  /** A call that finds no endpoint fails at once; one that hangs, after this. */
  private static final long CALL_TIMEOUT_SECONDS = 5;

  /** A channel without calls for so long asks xDS for nothing any more. */
  private static final long IDLE_SECONDS = 2;

  private static final int MOST_CALLS = 10_000;
  private static final Pattern CALLS = Pattern.compile("calls=([0-9]{1,5})");

  private static final MethodDescriptor<StringValue, StringValue> GREET =
      MethodDescriptor.<StringValue, StringValue>newBuilder()
          .setType(MethodDescriptor.MethodType.UNARY)
          .setFullMethodName("pontoon.e2e.Greeter/Greet")
          .setRequestMarshaller(ProtoUtils.marshaller(StringValue.getDefaultInstance()))
          .setResponseMarshaller(ProtoUtils.marshaller(StringValue.getDefaultInstance()))
          .build();

  private Caller() {}

  public static void main(String[] arguments) throws IOException {
    if (arguments.length != 3 || !arguments[0].equals("call")) {
      System.err.println("use: call TARGET ADDR:PORT");
      System.exit(2);
    }
    Channel channel =
        Grpc.newChannelBuilder(arguments[1], InsecureChannelCredentials.create())
            .idleTimeout(IDLE_SECONDS, TimeUnit.SECONDS)
            .build();
    int colon = arguments[2].lastIndexOf(':');
    String host = arguments[2].substring(0, colon);
    int port = Integer.parseInt(arguments[2].substring(colon + 1));
    HttpServer server = HttpServer.create(new InetSocketAddress(host, port), 0);
    server.createContext("/", exchange -> answer(exchange, channel));
    server.start();
  }

  /** Makes {@code ?calls=N} calls and says who answered how many; one that failed is counted under its error. */
  private static void answer(HttpExchange exchange, Channel channel) throws IOException {
    String query = exchange.getRequestURI().getQuery();
    Matcher matcher = CALLS.matcher(query == null ? "" : query);
    int calls = matcher.matches() ? Integer.parseInt(matcher.group(1)) : 0;
    if (calls < 1 || calls > MOST_CALLS) {
      respond(exchange, 400, "calls: expected a number, 1 to 10000");
      return;
    }
    TreeMap<String, Integer> counts = new TreeMap<>();
    for (int call = 0; call < calls; call++) {
      counts.merge(one(channel), 1, Integer::sum);
    }
    respond(exchange, 200, new Gson().toJson(counts));
  }

  private static String one(Channel channel) {
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(CALL_TIMEOUT_SECONDS, TimeUnit.SECONDS);
    try {
      return ClientCalls.blockingUnaryCall(channel, GREET, options, StringValue.of("pontoon")).getValue();
    } catch (StatusRuntimeException error) {
      return "failed: " + error.getStatus();
    }
  }

  private static void respond(HttpExchange exchange, int status, String text) throws IOException {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    exchange.sendResponseHeaders(status, bytes.length);
    exchange.getResponseBody().write(bytes);
    exchange.close();
  }
}
